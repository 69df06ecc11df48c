package bird

import (
	"bytes"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"flock.fritzlab.net/flock/pkg/config"
	"flock.fritzlab.net/flock/pkg/routing"
)

// conf is a configuration in the making. Text is constant and comes as format;
// what varies comes as terms.
type conf struct{ bytes.Buffer }

// add appends format, with a %s for each term.
func (c *conf) add(format string, terms ...term) {
	args := make([]any, len(terms))
	for i, t := range terms {
		args[i] = t.term()
	}
	fmt.Fprintf(c, format, args...)
}

// addIf appends format if the condition holds.
func (c *conf) addIf(condition bool, format string, terms ...term) {
	if condition {
		c.add(format, terms...)
	}
}

// term is a value in BIRD's language. Each type that is one writes only
// characters that cannot end the statement it stands in.
type term interface{ term() string }

type (
	addr      netip.Addr
	number    uint64
	seconds   time.Duration
	millis    time.Duration
	match     config.PrefixMatch
	community config.Community
	large     config.LargeCommunity
	symbol    struct{ name string }
	quoted    struct{ text string }
	boolean   bool
	family    uint8 // the digit that ends a family's names
)

const (
	ipv6 family = 6
	ipv4 family = 4
)

var families = []family{ipv6, ipv4}

func (a addr) term() string    { return netip.Addr(a).WithZone("").String() }
func (n number) term() string  { return strconv.FormatUint(uint64(n), 10) }
func (s seconds) term() string { return strconv.Itoa(int(time.Duration(s) / time.Second)) }
func (m millis) term() string {
	return strconv.Itoa(int(time.Duration(m)/time.Millisecond)) + " ms"
}
func (s symbol) term() string  { return s.name }
func (q quoted) term() string  { return `"` + q.text + `"` }
func (b boolean) term() string { return strconv.FormatBool(bool(b)) }
func (f family) term() string  { return string('0' + rune(f)) }

func (m match) term() string {
	if m.Min == m.Prefix.Bits() && m.Max == m.Min {
		return m.Prefix.String()
	}
	return fmt.Sprintf("%s{%d,%d}", m.Prefix, m.Min, m.Max)
}

func (c community) term() string { return fmt.Sprintf("(%d,%d)", c.High, c.Low) }
func (l large) term() string     { return fmt.Sprintf("(%d,%d,%d)", l.Global, l.Local1, l.Local2) }

// list is several terms with commas between.
type list []term

func (l list) term() string {
	parts := make([]string, len(l))
	for i, t := range l {
		parts[i] = t.term()
	}
	return strings.Join(parts, ", ")
}

// bits is the length of an address.
func (f family) bits() int {
	if f == ipv4 {
		return 32
	}
	return 128
}

// has reports whether p is of the family.
func (f family) has(p netip.Prefix) bool { return p.Addr().Is4() == (f == ipv4) }

// word is a part of a symbol: whatever is not a lower-case letter or a digit
// becomes an underscore. Names of peers hold none, so that no two of them become
// the same word.
func word(name string) string {
	w := []byte(name)
	for i, b := range w {
		if (b < 'a' || b > 'z') && (b < '0' || b > '9') {
			w[i] = '_'
		}
	}
	return string(w)
}

// peerSymbol is the name of a peer's protocol in BIRD. The prefix keeps the name
// "path", as bgp_path, from being a word of the language.
func peerSymbol(name string) symbol { return symbol{peerPrefix + word(name)} }

const peerPrefix = "peer_"

// interfaceName is quoted, and holds nothing that could end the quotes or be
// taken for a pattern.
func interfaceName(name string) quoted {
	w := []byte(name)
	for i, b := range w {
		if (b < 'a' || b > 'z') && (b < 'A' || b > 'Z') && (b < '0' || b > '9') && b != '.' && b != '-' {
			w[i] = '_'
		}
	}
	return quoted{string(w)}
}

// secret is quoted: a routing.Password holds no quote and no line break.
func secret(p routing.Password) quoted { return quoted{p.Reveal()} }
