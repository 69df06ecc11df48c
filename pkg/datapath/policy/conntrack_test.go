package policy

import (
	"bytes"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestFullConntrack(t *testing.T) {
	for _, tc := range []struct {
		name, count, limit string
		warns              bool
	}{
		{"room", "900\n", "1000\n", false},
		{"almost full", "901\n", "1000\n", true},
		{"full", "1000\n", "1000\n", true},
		{"no limit", "1000\n", "0\n", false},
		{"no connection tracking", "", "", false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			dir := t.TempDir()
			for name, text := range map[string]string{"nf_conntrack_count": tc.count, "nf_conntrack_max": tc.limit} {
				if text == "" {
					continue
				}
				if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			var log bytes.Buffer
			warnOfFullConntrack(slog.New(slog.NewTextHandler(&log, nil)), dir)
			want := fmt.Sprintf("almost full, new connections will be dropped\" connections=%s limit=%s sysctl=net.netfilter.nf_conntrack_max", strings.TrimSpace(tc.count), strings.TrimSpace(tc.limit))
			if warns := strings.Contains(log.String(), want); warns != tc.warns || !tc.warns && log.Len() > 0 {
				t.Errorf("log %q", log.String())
			}
		})
	}
}
