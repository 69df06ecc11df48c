// Package logattr puts attributes into a context, so that every line that is logged with
// it has them: which call it belongs to, for one. It is for lines that a call causes far
// from where it is known which call it is.
package logattr

import (
	"context"
	"log/slog"
	"slices"
)

type key struct{}

// With returns a context whose log lines have the attributes, after those that ctx gives
// them already.
func With(ctx context.Context, attrs ...slog.Attr) context.Context {
	return context.WithValue(ctx, key{}, slices.Concat(of(ctx), attrs))
}

func of(ctx context.Context) []slog.Attr {
	attrs, _ := ctx.Value(key{}).([]slog.Attr)
	return attrs
}

// Handler returns h with the attributes of each line's context. A line that names one of
// them itself, or has it from Logger.With, has it once, as it names it.
func Handler(h slog.Handler) slog.Handler { return handler{inner: h} }

type handler struct {
	inner slog.Handler
	given []string // keys that Logger.With has set, outside of groups
	group bool
}

func (h handler) Enabled(ctx context.Context, l slog.Level) bool { return h.inner.Enabled(ctx, l) }

func (h handler) Handle(ctx context.Context, r slog.Record) error {
	attrs := of(ctx)
	if len(attrs) == 0 || h.group {
		return h.inner.Handle(ctx, r)
	}
	named := slices.Clone(h.given)
	r.Attrs(func(a slog.Attr) bool {
		named = append(named, a.Key)
		return true
	})
	r = r.Clone()
	for _, a := range attrs {
		if !slices.Contains(named, a.Key) {
			r.AddAttrs(a)
		}
	}
	return h.inner.Handle(ctx, r)
}

func (h handler) WithAttrs(attrs []slog.Attr) slog.Handler {
	h.inner = h.inner.WithAttrs(attrs)
	h.given = slices.Clone(h.given)
	for _, a := range attrs {
		h.given = append(h.given, a.Key)
	}
	return h
}

func (h handler) WithGroup(name string) slog.Handler {
	h.inner, h.group = h.inner.WithGroup(name), true
	return h
}
