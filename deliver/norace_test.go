//go:build !race

package deliver

import "time"

const simulated = 10 * time.Second
