package admin

import (
	"bytes"
	"context"
	_ "embed"
	"fmt"
	"html/template"
	"net/http"
	"time"

	"github.com/walhook/walhook/cdc"
	"github.com/walhook/walhook/deliver/schedule"
	"github.com/walhook/walhook/internal/store"
)

//go:embed status.html
var statusHTML string

var statusTemplate = template.Must(template.New("status").Funcs(template.FuncMap{"bytes": humanBytes, "rounded": rounded}).Parse(statusHTML))

// A statusView is what the page shows.
type statusView struct {
	Version  string
	Role     string
	Problem  string // what is wrong, in words
	Stats    schedule.Stats
	Stream   cdc.Status
	Database store.Overview
}

// statusPage shows how things stand, in plain HTML that reloads itself.
func statusPage(o Options, db *database) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), databasePatience)
		defer cancel()
		view := statusView{Version: o.Version, Stats: o.Stats(), Stream: o.Stream()}
		view.Role, view.Problem = roles[view.Stream.Role], view.Stream.Err
		var err error
		if view.Database, err = db.overview(ctx); err != nil {
			view.Problem = err.Error()
		}
		var page bytes.Buffer
		if err := statusTemplate.Execute(&page, view); err != nil {
			refuse(w, http.StatusInternalServerError, err.Error())
			return
		}
		h := w.Header()
		h.Set("Content-Type", "text/html; charset=utf-8")
		h.Set("Cache-Control", "no-store")
		h.Set("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'")
		h.Set("X-Content-Type-Options", "nosniff")
		_, _ = page.WriteTo(w)
	})
}

func rounded(d *time.Duration) time.Duration { return d.Round(time.Second) }

// humanBytes prints a number of bytes in the unit that people would choose.
func humanBytes(n int64) string {
	unit, value := "B", float64(n)
	for _, larger := range []string{"KiB", "MiB", "GiB", "TiB"} {
		if value < 1024 {
			break
		}
		unit, value = larger, value/1024
	}
	if unit == "B" {
		return fmt.Sprintf("%d B", n)
	}
	return fmt.Sprintf("%.1f %s", value, unit)
}
