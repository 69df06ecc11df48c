package scrape

import (
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"

	"flock.fritzlab.net/flock/internal/backoff"
	"flock.fritzlab.net/flock/internal/cell"
)

// Address is where something is served.
type Address struct {
	// Flag names the setting with the address, as in "--metrics-address".
	Flag string
	// Addr is address:port; if empty, nothing is served.
	Addr string
	// TLS is the server's configuration; nil: without TLS.
	TLS *tls.Config
	// Fault is why it cannot serve, in the words of an error, and empty if it can; nil if
	// nobody asks.
	Fault *cell.Cell[string]
	Log   *slog.Logger
}

// Run serves until ctx ends. An address that is taken costs what is served, not the
// program: it is tried again.
func (a Address) Run(ctx context.Context, handler http.Handler) {
	if a.Addr == "" {
		return
	}
	delay := backoff.Backoff{First: time.Second, Last: 30 * time.Second}
	for {
		began := time.Now()
		listener, err := net.Listen("tcp", a.Addr)
		if err == nil {
			a.tell("")
			if a.TLS != nil {
				listener = tls.NewListener(listener, a.TLS)
			}
			err = Serve(ctx, listener, handler, a.Log)
		}
		if ctx.Err() != nil {
			return
		}
		if time.Since(began) > delay.Last {
			delay.Reset()
		}
		err = fmt.Errorf("%s=%s: %w", a.Flag, a.Addr, err)
		a.tell(err.Error())
		a.Log.Error("cannot serve, will retry", "error", err)
		if delay.Wait(ctx) != nil {
			return
		}
	}
}

func (a Address) tell(fault string) {
	if a.Fault != nil {
		a.Fault.Set(fault)
	}
}

// Serve answers until ctx ends. What a client does wrong is logged for debugging alone:
// whoever can connect can cause it.
func Serve(ctx context.Context, listener net.Listener, handler http.Handler, log *slog.Logger) error {
	server := &http.Server{
		Handler: handler, ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 10 * time.Second, WriteTimeout: time.Minute, IdleTimeout: 2 * time.Minute,
		MaxHeaderBytes: 64 << 10, ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
	defer context.AfterFunc(ctx, func() { server.Close() })()
	return server.Serve(listener)
}
