package bird

import (
	"context"
	"errors"
	"os/exec"
	"strings"
	"time"

	"flock.fritzlab.net/flock/internal/sys"
	"flock.fritzlab.net/flock/pkg/routing/birdc"
)

// CheckFile returns a judge of configuration files that runs the program bird
// with -p: for when no daemon runs that could be asked. Its refusal is a
// *birdc.ReplyError, as the daemon's would be.
func CheckFile(program string) func(ctx context.Context, path string) error {
	return func(ctx context.Context, path string) error {
		ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
		defer cancel()
		out, err := sys.CombinedOutput(exec.CommandContext(ctx, program, "-p", "-c", path))
		if exit := new(exec.ExitError); errors.As(err, &exit) && exit.Exited() {
			const parseError = 8002
			return &birdc.ReplyError{Command: program + " -p", Code: parseError, Text: strings.TrimPrefix(strings.TrimSpace(string(out)), "bird: ")}
		}
		return err
	}
}
