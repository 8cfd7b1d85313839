package main

import (
	"encoding/pem"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/uuid"

	"github.com/walhook/walhook/internal/process"
)

const selectErrors = `SELECT coalesce(string_agg(DISTINCT coalesce(error_class, status) || ': ' || coalesce(error, ''), '; '), '')
FROM webhook_deliveries WHERE endpoint_id = $1`

// An endpoint reaches neither the database nor the admin server, although the net that they
// are in is allowed, and other ports of the same address are receivers.
func TestTheDatabaseAndTheAdminServerAreDenied(t *testing.T) {
	port, err := process.ForWalhook.FreePort()
	if err != nil {
		t.Fatal(err)
	}
	w := newWorld(t)
	server, err := url.Parse(w.db.URL)
	if err != nil {
		t.Fatal(err)
	}
	r := newReceiver(t, always(204))
	hosts := []string{server.Host, "127.0.0.2:" + server.Port(), fmt.Sprintf("127.0.0.1:%d", port), fmt.Sprintf("localhost:%d", port)}
	w.run(fmt.Sprintf("WALHOOK_ADMIN_ADDR=127.0.0.1:%d", port), "WALHOOK_RETRY_SCHEDULE=")
	good, _ := w.endpoint(r.URL)
	var denied []uuid.UUID
	for _, host := range hosts {
		id, _ := w.endpoint("http://" + host + "/")
		denied = append(denied, id)
	}
	w.insert("payment.succeeded")
	w.eventually("everything has an outcome", `SELECT count(*) = $1 FROM webhook_deliveries WHERE completed_at IS NOT NULL`, len(hosts)+1)
	for i, id := range denied {
		if got := query[string](w, selectErrors, id); !strings.HasPrefix(got, "blocked_address: ") || !strings.Contains(got, "never dialled") {
			t.Errorf("%s: %q, want that it is never dialled", hosts[i], got)
		}
	}
	if got := query[string](w, selectErrors, good); got != "success: " {
		t.Errorf("the receiver beside them: %q, want success", got)
	}
}

func TestACertificateOfAnAuthorityOfTheDeployment(t *testing.T) {
	w := newWorld(t)
	server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) }))
	t.Cleanup(server.Close)
	path := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	w.run("WALHOOK_CA_FILE=" + path)
	id, _ := w.endpoint(server.URL)
	w.insert("payment.succeeded")
	w.eventually("it has an outcome", `SELECT status <> 'pending' FROM webhook_deliveries WHERE endpoint_id = $1`, id)
	if got := query[string](w, selectErrors, id); got != "success: " {
		t.Errorf("got %q, want success", got)
	}
}
