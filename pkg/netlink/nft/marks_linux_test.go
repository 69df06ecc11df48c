package nft

import (
	"fmt"
	"slices"
	"testing"

	"flock.fritzlab.net/flock/internal/nettest"
)

// Who writes which bits of the ct mark, in the words of nft and of iptables.
func TestMarkWriters(t *testing.T) {
	t.Parallel()
	ns := nettest.New(t)
	ns.Exec("nft", `table inet one {
		chain a { ct mark set ct mark & 0xffffff00 | 0x00000012; }
		chain b { ct mark set 0x1; }
		chain c { ct mark set mark; }
		chain d { ct mark set ct mark and 0xff; }
		chain e { ct mark set ct mark xor 0x30; }
		chain f { ct mark 0x4000 accept; mark set ct mark; meta mark set mark or 0x4000; ct zone set 1; }
	}`)
	for _, tool := range []string{"iptables-nft", "ip6tables-nft"} {
		ns.Exec(tool, "-t", "mangle", "-A", "PREROUTING", "-j", "CONNMARK", "--set-xmark", "0x100/0xf00")
		ns.Exec(tool, "-t", "mangle", "-A", "INPUT", "-j", "CONNMARK", "--save-mark", "--nfmask", "0xf", "--ctmask", "0xf0")
		ns.Exec(tool, "-t", "mangle", "-A", "OUTPUT", "-j", "CONNMARK", "--restore-mark")
		ns.Exec(tool, "-t", "mangle", "-A", "OUTPUT", "-j", "MARK", "--set-mark", "1")
	}
	var conn *Conn
	var err error
	ns.Run(func() { conn, err = Dial() })
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	writers, err := conn.MarkWriters()
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, w := range writers {
		got = append(got, fmt.Sprintf("%v %#x", w.Chain, w.Bits))
	}
	if want := []string{
		"inet one a 0xff", "inet one b 0xffffffff", "inet one c 0xffffffff", "inet one d 0xffffff00", "inet one e 0x30",
		"ip mangle PREROUTING 0xf00", "ip mangle INPUT 0xff", "ip6 mangle PREROUTING 0xf00", "ip6 mangle INPUT 0xff",
	}; !slices.Equal(got, want) {
		t.Errorf("got %q\nwant %q", got, want)
	}
}
