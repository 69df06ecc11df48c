//go:build !linux

package cni

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
)

// Serve needs Linux's network namespaces and SOCK_SEQPACKET sockets.
func Serve(context.Context, string, Backend, *slog.Logger) error {
	return fmt.Errorf("serving CNI calls: %w", errors.ErrUnsupported)
}
