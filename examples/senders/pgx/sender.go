// Sends by pgx. PGHOST, PGUSER and the like say where to:
//
//	go run ./examples/senders/pgx org_1 4200
package main

import (
	"context"
	"encoding/json"
	"errors"
	"log"
	"os"
	"strconv"

	"github.com/jackc/pgx/v5"

	"github.com/walhook/walhook/outbox"
)

var errNotEnough = errors.New("the account has not enough")

// pay records a payment and its event. An error rolls both back: BeginFunc commits only if the function returns nil.
func pay(ctx context.Context, conn *pgx.Conn, organization string, amount int64) error {
	return pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		var payment int64
		const insert = `INSERT INTO payments (organization_id, amount) VALUES ($1, $2) RETURNING id`
		if err := tx.QueryRow(ctx, insert, organization, amount).Scan(&payment); err != nil {
			return err
		}
		payload, err := json.Marshal(map[string]any{"paymentId": payment, "amount": amount, "currency": "EUR"})
		if err != nil {
			return err
		}
		// In the payment's own transaction: another connection could commit one without the other.
		if _, err := outbox.Enqueue(ctx, tx, outbox.Event{OrganizationID: organization, Type: "payment.succeeded", Payload: payload}); err != nil {
			return err
		}
		const take = `UPDATE accounts SET balance = balance - $2 WHERE organization_id = $1 AND balance >= $2`
		if tag, err := tx.Exec(ctx, take, organization, amount); err != nil || tag.RowsAffected() == 1 {
			return err
		}
		return errNotEnough
	})
}

func run(ctx context.Context, organization, amount string) error {
	n, err := strconv.ParseInt(amount, 10, 64)
	if err != nil {
		return err
	}
	conn, err := pgx.Connect(ctx, "")
	if err != nil {
		return err
	}
	return errors.Join(pay(ctx, conn, organization, n), conn.Close(ctx))
}

func main() {
	if len(os.Args) != 3 {
		log.Fatal("usage: sender ORGANIZATION AMOUNT")
	}
	if err := run(context.Background(), os.Args[1], os.Args[2]); err != nil {
		log.Fatal(err)
	}
}
