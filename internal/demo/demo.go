// Package demo tells walhook's story on a throwaway PostgreSQL: two organizations
// commit events, one receiver works and two do not, and every delivery comes to an
// end.
//
// The demo plays everyone around walhook: the application, the receivers, an operator
// with psql. So its SQL is theirs. The caller starts walhook. The story is also a
// test: it computes from the committed events what must be true at the end, and Run
// returns what is not.
//
//	file          responsibility
//	demo.go       Run: a database, and the story on it
//	story.go      starts everyone, performs the script, watches until nothing is under way
//	script.go     the roles, who subscribes to what, and the application's transactions
//	walhook.go    walhook beside the database: its environment, start and stop
//	receivers.go  an HTTP server that plays the receivers
//	narrator.go   reports each change in the deliveries' rows
//	promises.go   what must be true at the end: the oracle's rules, and four more
//	page.go       the output
//	terminal.go   detects a terminal; colours
package demo

import (
	"context"
	"errors"
	"io"
	"time"

	"github.com/walhook/walhook/internal/postgres"
	"github.com/walhook/walhook/internal/terminal"
)

// A Start runs walhook with an environment in the form of os.Environ. When the context
// ends, it drains and returns.
type Start func(ctx context.Context, environ []string, log io.Writer) error

// Config is what the caller provides.
type Config struct {
	Start Start
	Out   io.Writer
	Log   io.Writer // for walhook's log; nil: the demo shows the end of it if something fails
	Paint terminal.Paint
	Stay  bool // after the story, keep everything running until the context ends
}

// ErrInterrupted means that the context ended before the story did.
var ErrInterrupted = errors.New("interrupted before the demo finished")

// Run tells the story and removes everything again: the database, walhook, the
// receivers. The error names what was not true at the end.
func Run(ctx context.Context, cfg Config) (err error) {
	page := &page{out: cfg.Out, paint: cfg.Paint, begun: time.Now()}
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

// schema holds walhook's tables, as the README advises.
const schema = "webhooks"

// inSchema adds the search path to a database's URL, for psql too.
func inSchema(url string) string { return url + "&options=-csearch_path%3D" + schema }
