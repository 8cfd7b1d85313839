// A receiver in Go. From the root of the repository:
//
//	WEBHOOK_SECRETS=whsec_… go run ./examples/receivers
package main

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net/http"
	"os"
	"strings"
	"sync"

	"github.com/walhook/walhook/sign"
)

const maxBody = 1 << 20 // bytes; walhook sends 256 KiB of payload at most, and little around it

type receiver struct {
	verifier sign.Verifier
	seen     sync.Map // of delivery ids; in real life a unique key in your database
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
	var event struct {
		Event          string          `json:"event"`
		OrganizationID string          `json:"organizationId"`
		Data           json.RawMessage `json:"data"`
	}
	if err := json.Unmarshal(body, &event); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	if _, again := rcv.seen.LoadOrStore(r.Header.Get("X-Webhook-Delivery-ID"), true); !again {
		fmt.Printf("received %s of %s: %s\n", event.Event, event.OrganizationID, event.Data)
	}
	w.WriteHeader(http.StatusNoContent)
}

func main() {
	secrets := strings.Split(os.Getenv("WEBHOOK_SECRETS"), ",") // during a rotation: the old and the new one
	if secrets[0] == "" {
		log.Fatal("set WEBHOOK_SECRETS to the secret that webhook_create_endpoint returned")
	}
	http.Handle("POST /", &receiver{verifier: sign.Verifier{Secrets: secrets}})
	log.Fatal(http.ListenAndServe(":"+cmp.Or(os.Getenv("PORT"), "3000"), nil))
}
