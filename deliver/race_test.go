//go:build race

package deliver

import "time"

// simulated is for how long TestSimulation tries seeds. With the race detector it tries a tenth as many in a second, and nothing
// of it runs in parallel: the long run is the one without, see `make test`.
const simulated = 3 * time.Second
