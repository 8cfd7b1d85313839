// Sends by database/sql, here with pgx as its driver. PGHOST, PGUSER and the like say where to:
//
//	go run ./examples/senders/databasesql org_1 4200
package main

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"log"
	"os"
	"strconv"

	_ "github.com/jackc/pgx/v5/stdlib" // registers "pgx"
)

var errNotEnough = errors.New("the account has not enough")

// pay records a payment and its event. Whatever returns before Commit rolls both back.
func pay(ctx context.Context, db *sql.DB, organization string, amount int64) error {
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer tx.Rollback() // does nothing after Commit

	var payment int64
	const insert = `INSERT INTO payments (organization_id, amount) VALUES ($1, $2) RETURNING id`
	if err := tx.QueryRowContext(ctx, insert, organization, amount).Scan(&payment); err != nil {
		return err
	}
	payload, err := json.Marshal(map[string]any{"paymentId": payment, "amount": amount, "currency": "EUR"})
	if err != nil {
		return err
	}
	// By tx, and not by db: another connection could commit one without the other.
	const event = `INSERT INTO webhook_outbox (organization_id, event_type, payload) VALUES ($1, 'payment.succeeded', $2)`
	if _, err := tx.ExecContext(ctx, event, organization, string(payload)); err != nil {
		return err
	}
	const take = `UPDATE accounts SET balance = balance - $2 WHERE organization_id = $1 AND balance >= $2`
	result, err := tx.ExecContext(ctx, take, organization, amount)
	if err != nil {
		return err
	}
	if taken, err := result.RowsAffected(); err != nil {
		return err
	} else if taken == 0 {
		return errNotEnough
	}
	return tx.Commit()
}

func run(ctx context.Context, organization, amount string) error {
	n, err := strconv.ParseInt(amount, 10, 64)
	if err != nil {
		return err
	}
	db, err := sql.Open("pgx", "")
	if err != nil {
		return err
	}
	return errors.Join(pay(ctx, db, organization, n), db.Close())
}

func main() {
	if len(os.Args) != 3 {
		log.Fatal("usage: sender ORGANIZATION AMOUNT")
	}
	if err := run(context.Background(), os.Args[1], os.Args[2]); err != nil {
		log.Fatal(err)
	}
}
