// A receiver in Go, with a table in PostgreSQL, which PGHOST, PGUSER and the like lead to. From the root of the repository:
//
//	WEBHOOK_SECRETS=whsec_… go run ./examples/receivers
package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/walhook/walhook/sign"
)

const maxBody = 1 << 20 // bytes; walhook sends 256 KiB of payload at most, and little around it

// work_at is when to work on it; null: done. Keep what is done for 30 days: so long walhook can send it again.
const table = `
CREATE TABLE IF NOT EXISTS received_webhooks (
    delivery_id text PRIMARY KEY, body text NOT NULL, received_at timestamptz NOT NULL DEFAULT now(), work_at timestamptz DEFAULT now())`

type receiver struct {
	verifier sign.Verifier
	db       *pgxpool.Pool
	wake     chan struct{}
}

func (rcv *receiver) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody)) // the raw bytes: decoding and encoding would change them
	if err != nil {
		http.Error(w, err.Error(), http.StatusRequestEntityTooLarge)
		return
	}
	if err := rcv.verifier.Verify(r.Header, body); err != nil {
		http.Error(w, err.Error(), http.StatusUnauthorized)
		return
	}
	// webhook-id is the delivery's id, and signed, unlike X-Webhook-Delivery-ID.
	const insert = `INSERT INTO received_webhooks (delivery_id, body) VALUES ($1, $2) ON CONFLICT DO NOTHING`
	if _, err := rcv.db.Exec(r.Context(), insert, r.Header.Get(sign.HeaderID), string(body)); err != nil {
		log.Print(err)
		http.Error(w, "try again", http.StatusInternalServerError)
		return
	}
	w.WriteHeader(http.StatusNoContent)
	select {
	case rcv.wake <- struct{}{}:
	default: // it is awake
	}
}

// workOff works on what is due. Several processes share it: SKIP LOCKED gives each its own rows.
func (rcv *receiver) workOff(ctx context.Context) {
	for {
		err := pgx.BeginFunc(ctx, rcv.db, rcv.workOnOne)
		switch {
		case err == nil:
			continue
		case !errors.Is(err, pgx.ErrNoRows):
			log.Print(err)
		}
		select {
		case <-rcv.wake:
		case <-time.After(time.Second):
		}
	}
}

// workOnOne commits the work and that it is done together: what it writes by tx is written once, whatever crashes.
func (rcv *receiver) workOnOne(tx pgx.Tx) error {
	ctx := context.Background()
	const due = `SELECT delivery_id, body FROM received_webhooks WHERE work_at <= now() ORDER BY work_at LIMIT 1 FOR UPDATE SKIP LOCKED`
	var delivery, body string
	if err := tx.QueryRow(ctx, due).Scan(&delivery, &body); err != nil {
		return err
	}
	again := pgx.NamedArgs{"id": delivery, "wait": nil}
	if err := pgx.BeginFunc(ctx, tx, func(tx pgx.Tx) error { return work(ctx, tx, []byte(body)) }); err != nil {
		log.Print(err)
		again["wait"] = time.Minute // meanwhile the others
	}
	_, err := tx.Exec(ctx, `UPDATE received_webhooks SET work_at = now() + @wait::interval WHERE delivery_id = @id`, again)
	return err
}

func work(_ context.Context, _ pgx.Tx, body []byte) error {
	var event struct {
		Event          string          `json:"event"`
		OrganizationID string          `json:"organizationId"`
		Data           json.RawMessage `json:"data"`
	}
	if err := json.Unmarshal(body, &event); err != nil {
		return err
	}
	takes, _ := time.ParseDuration(cmp.Or(os.Getenv("WORK_SECONDS"), "0") + "s")
	time.Sleep(takes) // yours takes its time here
	fmt.Printf("received %s of %s: %s\n", event.Event, event.OrganizationID, event.Data)
	return nil
}

func run(ctx context.Context) error {
	secrets := strings.FieldsFunc(os.Getenv("WEBHOOK_SECRETS"), func(r rune) bool { return r == ',' }) // during a rotation: the old and the new one
	if len(secrets) == 0 {
		return errors.New("set WEBHOOK_SECRETS to the secret that webhook_create_endpoint returned")
	}
	db, err := pgxpool.New(ctx, "")
	if err != nil {
		return err
	}
	if _, err := db.Exec(ctx, table); err != nil {
		return err
	}
	rcv := &receiver{verifier: sign.Verifier{Secrets: secrets}, db: db, wake: make(chan struct{}, 1)}
	go rcv.workOff(ctx)
	http.Handle("POST /", rcv)
	server := &http.Server{Addr: ":" + cmp.Or(os.Getenv("PORT"), "3000"), ReadTimeout: time.Minute} // for ever otherwise
	return server.ListenAndServe()
}

func main() {
	log.Fatal(run(context.Background()))
}
