package admin

import (
	"testing"
	"time"

	"github.com/walhook/walhook/internal/store"
)

// What took long to read is kept for each organization, whoever asks for others meanwhile, until
// somebody presses a button.
func TestKeptLists(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	d := newDatabase(options(t, s.db.Pool).Store)
	kept := func() map[string]*kept[endpointList] {
		until := time.Now().Add(time.Hour)
		return map[string]*kept[endpointList]{"": {until: until}, "org_1": {until: until}}
	}
	lists := func(organization string, want int) {
		t.Helper()
		if found, _, err := d.endpoints(t.Context(), organization); err != nil || len(found) != want {
			t.Errorf("of %q it lists %d endpoints, %v, want %d", organization, len(found), err, want)
		}
	}
	d.listed, d.shown.until = kept(), time.Now().Add(time.Hour)
	lists("org_2", 0)
	lists("", 0)
	lists("org_1", 0)
	if err := d.pause(t.Context(), s.healthy); err != nil {
		t.Fatal(err)
	}
	lists("", 3)
	lists("org_1", 2)
	if o, err := d.overview(t.Context()); err != nil || *o.Endpoints != (store.EndpointsOverview{Open: 1, Paused: 1, Disabled: 1}) {
		t.Errorf("%+v, %v", o.Endpoints, err)
	}
}
