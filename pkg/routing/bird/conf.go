package bird

import (
	"bytes"
	"fmt"
	"net/netip"
	"strconv"
	"time"

	"flock.fritzlab.net/flock/pkg/config"
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

// term is a value in BIRD's language. Each type that is one writes only
// characters that cannot end the statement it stands in.
type term interface{ term() string }

type (
	addr    netip.Addr
	number  uint64
	seconds time.Duration
	symbol  struct{ name string }
)

func (a addr) term() string    { return netip.Addr(a).WithZone("").String() }
func (n number) term() string  { return strconv.FormatUint(uint64(n), 10) }
func (s seconds) term() string { return strconv.Itoa(int(time.Duration(s) / time.Second)) }
func (s symbol) term() string  { return s.name }

// peerSymbol is the name of p's protocol in BIRD. Peer names hold no underscore,
// so two of them never share a symbol; the prefix keeps the name "path", as
// bgp_path, from being a word of the language.
func peerSymbol(p config.BGPPeer) symbol {
	name := []byte("peer_" + p.Name)
	for i, b := range name {
		if (b < 'a' || b > 'z') && (b < '0' || b > '9') {
			name[i] = '_'
		}
	}
	return symbol{string(name)}
}
