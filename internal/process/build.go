package process

import (
	"context"
	"fmt"
	"os/exec"
)

// Build builds walhook into a file, for tests that run the program itself.
func Build(ctx context.Context, path string, flags ...string) error {
	args := append([]string{"build", "-o", path}, flags...)
	if output, err := exec.CommandContext(ctx, "go", append(args, "github.com/walhook/walhook")...).CombinedOutput(); err != nil {
		return fmt.Errorf("build walhook: %w: %s", err, output)
	}
	return nil
}
