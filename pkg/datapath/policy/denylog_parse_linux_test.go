package policy

import (
	"encoding/hex"
	"net/netip"
	"testing"
)

// Ports are read behind extension headers, and not from later fragments.
func TestParsePacket(t *testing.T) {
	t.Parallel()
	const six = "6000000000141140" + "fd000001000000000000000000000001" + "fd000001000000000000000000000002"
	for text, want := range map[string]deniedPacket{
		"4500001c000000004011000001020304050607080fa00050":         {src: netip.MustParseAddr("1.2.3.4"), dst: netip.MustParseAddr("5.6.7.8"), proto: 17, sport: 4000, dport: 80},
		"4500001c000020014011000001020304050607080fa00050":         {src: netip.MustParseAddr("1.2.3.4"), dst: netip.MustParseAddr("5.6.7.8"), proto: 17},
		"46000020000000004006000001020304050607080101010100500fa0": {src: netip.MustParseAddr("1.2.3.4"), dst: netip.MustParseAddr("5.6.7.8"), proto: 6, sport: 80, dport: 4000},
		"4500001c000000004001000001020304050607080fa00050":         {src: netip.MustParseAddr("1.2.3.4"), dst: netip.MustParseAddr("5.6.7.8"), proto: 1},
		six + "0fa00050": {src: netip.MustParseAddr("fd00:1::1"), dst: netip.MustParseAddr("fd00:1::2"), proto: 17, sport: 4000, dport: 80},
		"6000000000142c40" + six[16:] + "1100000100000001" + "0fa00050": {src: netip.MustParseAddr("fd00:1::1"), dst: netip.MustParseAddr("fd00:1::2"), proto: 17, sport: 4000, dport: 80},
		"6000000000142c40" + six[16:] + "1100000900000001" + "0fa00050": {src: netip.MustParseAddr("fd00:1::1"), dst: netip.MustParseAddr("fd00:1::2"), proto: 17},
		"6000000000140040" + six[16:] + "0600000000000000" + "0fa00050": {src: netip.MustParseAddr("fd00:1::1"), dst: netip.MustParseAddr("fd00:1::2"), proto: 6, sport: 4000, dport: 80},
	} {
		b, err := hex.DecodeString(text)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := parsePacket(b); err != nil || got != want {
			t.Errorf("%s: %+v, %v; want %+v", text, got, err, want)
		}
	}
}

func FuzzParsePacket(f *testing.F) {
	f.Add([]byte{0x45}, byte(0))
	f.Add([]byte{0x60, 0, 0, 0, 0, 8, 44, 64}, byte(60))
	f.Fuzz(func(t *testing.T, b []byte, more byte) {
		parsePacket(append(b, make([]byte, more)...))
	})
}
