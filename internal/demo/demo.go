// Package demo tells walhook's story on a throwaway PostgreSQL: two
// organizations' transactions, three receivers of which one is well and two are
// not, and what becomes of every delivery.
//
// It plays everyone around walhook (the application, the receivers, an operator
// with psql), so the SQL in it is theirs. Walhook itself is started by the
// caller. The story is also a test: what has to come true is computed from what
// was committed, and Run returns what did not.
//
//	file         responsibility
//	demo.go      Run: the order in which things start, and end
//	walhook.go   walhook beside the database: its environment, start and stop
//	script.go    who subscribes to what, and the application's transactions
//	receiver.go  the three HTTP servers, and how each of them answers
//	arrival.go   one request, as its receiver saw it
//	evidence.go  what the database and the receivers know at one moment
//	promises.go  what has to be true of the evidence at the end
//	story.go     the script performed, watched until it has come to rest
//	narrator.go  the deliveries' rows as they change, told line by line
//	page.go      what the newcomer reads around that
//	terminal.go  whether there is a person, and colour
package demo

import (
	"context"
	"errors"
	"fmt"
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
		return ErrInterrupted // what it cut short tells nobody anything
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

// addProblem puts what else is wrong behind an error, naming what it is about.
func addProblem(err *error, what string, other error) {
	if other != nil {
		*err = errors.Join(*err, fmt.Errorf("%s: %w", what, other))
	}
}
