package logattr

import (
	"bytes"
	"context"
	"log/slog"
	"testing"
)

func TestLines(t *testing.T) {
	var out bytes.Buffer
	log := slog.New(Handler(slog.NewTextHandler(&out, &slog.HandlerOptions{ReplaceAttr: func(groups []string, a slog.Attr) slog.Attr {
		if a.Key == slog.TimeKey && len(groups) == 0 {
			return slog.Attr{}
		}
		return a
	}})))
	none := context.Background()
	call := With(none, slog.String("request", "1f"), slog.String("pod", "shop/web"))
	deeper := With(call, slog.Int("step", 2))
	for _, tc := range []struct {
		name string
		log  func()
		want string
	}{
		{"no attributes", func() { log.InfoContext(none, "m") }, "level=INFO msg=m\n"},
		{"a call's", func() { log.WarnContext(call, "m", "a", 1) }, "level=WARN msg=m a=1 request=1f pod=shop/web\n"},
		{"of two contexts", func() { log.InfoContext(deeper, "m") }, "level=INFO msg=m request=1f pod=shop/web step=2\n"},
		{"the outer one is as before", func() { log.InfoContext(call, "m") }, "level=INFO msg=m request=1f pod=shop/web\n"},
		{"named by the line", func() { log.InfoContext(call, "m", "pod", "shop/other") }, "level=INFO msg=m pod=shop/other request=1f\n"},
		{"named by the logger", func() { log.With("pod", "shop/other").InfoContext(call, "m") }, "level=INFO msg=m pod=shop/other request=1f\n"},
		{"without the context", func() { log.Info("m") }, "level=INFO msg=m\n"},
		{"in a group", func() { log.WithGroup("g").InfoContext(call, "m", "a", 1) }, "level=INFO msg=m g.a=1\n"},
		{"below the level", func() { log.DebugContext(call, "m") }, ""},
	} {
		out.Reset()
		tc.log()
		if out.String() != tc.want {
			t.Errorf("%s: %q, want %q", tc.name, out.String(), tc.want)
		}
	}
}
