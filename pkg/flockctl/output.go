package flockctl

import (
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"

	"k8s.io/apimachinery/pkg/util/duration"
	"sigs.k8s.io/yaml"
)

// none stands in a table where there is nothing.
const none = "-"

// table prints rows in columns, as kubectl does. What others have written, tenants and
// routers among them, neither breaks it nor speaks to the terminal.
func table(w io.Writer, indent string, rows [][]string) {
	var text strings.Builder
	columns := tabwriter.NewWriter(&text, 0, 8, 3, ' ', 0)
	for _, row := range rows {
		cells := make([]string, len(row))
		for i, cell := range row {
			cells[i] = strings.Map(func(r rune) rune {
				if unicode.IsControl(r) {
					return ' '
				}
				return r
			}, cell)
		}
		fmt.Fprintln(columns, indent+strings.Join(cells, "\t"))
	}
	columns.Flush()
	for line := range strings.Lines(text.String()) {
		fmt.Fprintln(w, strings.TrimRight(line, " \n"))
	}
}

// structured prints v as --output asks, json or yaml.
func (s *session) structured(v any) error {
	b, err := json.MarshalIndent(v, "", "  ")
	if err == nil && s.output == "yaml" {
		b, err = yaml.JSONToYAML(b)
	}
	if err != nil {
		return err
	}
	_, err = fmt.Fprintln(s.out, strings.TrimRight(string(b), "\n"))
	return err
}

// age is how long ago t was, in kubectl's words.
func (s *session) age(t time.Time) string {
	if t.IsZero() {
		return none
	}
	return duration.HumanDuration(s.now.Sub(t))
}

func or(text, otherwise string) string {
	if text == "" {
		return otherwise
	}
	return text
}

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

func join[T any](items []T, between string) string {
	var out []string
	for _, i := range items {
		out = append(out, fmt.Sprint(i))
	}
	return strings.Join(out, between)
}

// byAddress orders addresses in text: IPv6 before IPv4, then by number.
func byAddress(a, b string) int {
	x, errX := netip.ParseAddr(a)
	y, errY := netip.ParseAddr(b)
	switch {
	case errX != nil || errY != nil:
		return strings.Compare(a, b)
	case x.Is4() != y.Is4():
		if y.Is4() {
			return -1
		}
		return 1
	}
	return x.Compare(y)
}
