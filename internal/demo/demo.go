// Package demo tells walhook's story on a throwaway PostgreSQL: two
// organizations' transactions, three receivers of which one is well and two are
// not, and what becomes of every delivery.
//
// It plays everyone around walhook (the application, the receivers, an operator
// with psql), so the SQL in it is theirs. The caller starts walhook itself. The
// story is also a test: what has to come true is computed from what was
// committed, and Run returns what did not.
//
//	file          responsibility
//	demo.go       Run: a database, and the story on it
//	story.go      who starts when, the script performed, and watched until it has come to rest
//	script.go     the roles, who subscribes to what, and the application's transactions
//	walhook.go    walhook beside the database: its environment, start and stop
//	receivers.go  an HTTP server that plays the receivers
//	narrator.go   the deliveries' rows as they change, line by line
//	promises.go   what has to be true at the end: the oracle's rules, and a few more
//	page.go       what the newcomer reads
//	terminal.go   whether there is a person, and colour
package demo

import (
	"context"
	"errors"
	"io"
	"time"

	"github.com/walhook/walhook/internal/postgres"
)

// A Start runs walhook with an environment in the form of os.Environ, until the
// context ends; it then drains.
type Start func(ctx context.Context, environ []string, log io.Writer) error

// Config is what a demo needs from outside.
type Config struct {
	Start Start
	Out   io.Writer
	Log   io.Writer // walhook's log; nil: only its end, and only when something went wrong
	Color bool
	Stay  bool // when the story is told, leave everything running until the context ends
}

// ErrInterrupted means that the context ended before the story did.
var ErrInterrupted = errors.New("interrupted before the story was told")

// Run tells the story, and takes everything away again: the database, walhook,
// the receivers. The error names what did not come true.
func Run(ctx context.Context, cfg Config) (err error) {
	page := &page{out: cfg.Out, color: cfg.Color, begun: time.Now()}
	page.title()
	server, err := postgres.Start(ctx, postgres.Options{})
	switch {
	case err != nil && ctx.Err() != nil:
		return ErrInterrupted
	case err != nil:
		return err
	}
	defer func() { err = errors.Join(err, server.Close()) }()
	return newStory(cfg, page, inSchema(server.URL())).tell(ctx)
}

// schema is walhook's own, as the README advises.
const schema = "webhooks"

// inSchema is a database's URL, for psql too, with which its names are found.
func inSchema(url string) string { return url + "&options=-csearch_path%3D" + schema }
