package cni

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"runtime/debug"
	"syscall"
	"time"

	"flock.fritzlab.net/flock/internal/keylock"
	"flock.fritzlab.net/flock/internal/logattr"
	"flock.fritzlab.net/flock/pkg/cni/wire"
)

// Backend does what a runtime asks. Its methods are called concurrently, but
// never two at once for the same container ID. The context ends when the
// runtime gave up waiting, and a method returns soon after that.
//
// An [*Error] anywhere in a returned error's chain decides the code that the
// runtime sees; other errors become CodeFailed, and from Status
// CodeNotAvailable. The text reaches the operator as it is.
type Backend interface {
	// Add attaches the pod. Repeated for the same attachment it returns the
	// same result.
	Add(ctx context.Context, c *Call) (*Result, error)
	// Del detaches it. What is already gone is no error.
	Del(ctx context.Context, c *Call) error
	// Check compares the attachment with the kernel; [Call.ComparePrevResult]
	// compares it with what the runtime remembers.
	Check(ctx context.Context, c *Call) error
	// GC detaches all of the network's attachments but valid.
	GC(ctx context.Context, c *Call, valid []AttachmentID) error
	// Status says why an Add would not succeed now, nil if it would.
	Status(ctx context.Context) error
}

// dispatcher turns a request into a response. It holds no sockets.
type dispatcher struct {
	backend    Backend
	log        *slog.Logger
	containers keylock.Map[string]
	// vetNetNS returns an error if the file can't be a pod's network namespace.
	vetNetNS func(*os.File) error
}

// answer handles one request. It does not close netNS, which may be nil.
func (d *dispatcher) answer(ctx context.Context, r wire.Request, netNS *os.File) (response wire.Response) {
	start := time.Now()
	cniVersion, log := latestVersion, d.log
	// Every line of the call has it, so that they are found among those of other calls.
	request := fmt.Sprintf("%08x", rand.Uint32())
	ctx = logattr.With(ctx, slog.String("request", request))
	defer func() {
		if p := recover(); p != nil {
			log.ErrorContext(ctx, "CNI call panicked", "panic", p, "stack", string(debug.Stack()))
			response = failure(&Error{
				Code:    CodeInternal,
				Msg:     fmt.Sprintf("flock's agent has a bug and gave up on this call: %v", p),
				Details: "the agent's log has the stack: kubectl -n flock-system logs -l app.kubernetes.io/name=flock -c agent; please report it",
			}, cniVersion)
		}
	}()
	call, cniVersion, err := parseCall(r)
	if err != nil {
		log.WarnContext(ctx, "CNI call refused", "error", err)
		return failure(asError(err, CodeFailed), cniVersion)
	}
	call.Request = request
	ctx = logattr.With(ctx, slog.String("command", call.Command))
	if call.ContainerID != "" {
		ctx = logattr.With(ctx, slog.String("pod", call.Pod.String()), slog.String("container", call.ContainerID), slog.String("ifname", call.IfName))
	}
	output, err := d.perform(ctx, call, r, netNS)
	if err != nil {
		log.WarnContext(ctx, "CNI call failed", "took", time.Since(start), "error", err)
		return failure(asError(err, CodeFailed), cniVersion)
	}
	log.DebugContext(ctx, "CNI call done", "took", time.Since(start))
	return wire.Response{Output: output}
}

func (d *dispatcher) perform(ctx context.Context, c *Call, r wire.Request, netNS *os.File) ([]byte, error) {
	switch c.Command {
	case CommandStatus:
		if err := d.backend.Status(ctx); err != nil {
			return nil, asError(err, CodeNotAvailable)
		}
		return nil, nil
	case CommandGC:
		return nil, d.backend.GC(ctx, c, c.Config.valid)
	}
	if err := d.takeNetNS(ctx, c, r, netNS); err != nil {
		return nil, err
	}
	unlock, err := d.containers.Lock(ctx, c.ContainerID)
	if err != nil {
		return nil, TryAgainLater("container %s: an earlier call for it is still running: %w", c.ContainerID, err)
	}
	defer unlock()
	switch c.Command {
	case CommandDel:
		return nil, d.backend.Del(ctx, c)
	case CommandCheck:
		return nil, d.backend.Check(ctx, c)
	}
	result, err := d.backend.Add(ctx, c)
	if err != nil {
		return nil, err
	}
	return result.json(c.Config.CNIVersion, c.NetNSPath)
}

// takeNetNS gives the call its network namespace. For DEL, a namespace that is gone,
// or has a path that leads to something else, counts as none.
func (d *dispatcher) takeNetNS(ctx context.Context, c *Call, r wire.Request, netNS *os.File) error {
	var err error
	switch {
	case r.NetNSErrno != 0:
		err = InvalidNetNS("CNI_NETNS=%q: %w", c.NetNSPath, syscall.Errno(r.NetNSErrno))
	case netNS == nil && c.NetNSPath != "":
		err = InvalidNetNS("CNI_NETNS=%q: the plugin did not hand over the open file", c.NetNSPath)
	case netNS != nil:
		if vetErr := d.vetNetNS(netNS); vetErr != nil {
			err = InvalidNetNS("CNI_NETNS=%q: %w", c.NetNSPath, vetErr)
		}
	}
	switch {
	case err == nil:
		c.NetNS = netNS
	case c.Command == CommandDel:
		d.log.DebugContext(ctx, "DEL without a network namespace", "reason", err)
	default:
		return err
	}
	return nil
}

func failure(e *Error, cniVersion string) wire.Response {
	return wire.Response{Exit: 1, Output: errorJSON(e, cniVersion)}
}
