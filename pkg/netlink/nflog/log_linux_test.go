package nflog_test

import (
	"context"
	"encoding/binary"
	"errors"
	"net"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"flock.fritzlab.net/flock/internal/nettest"
	"flock.fritzlab.net/flock/pkg/netlink/nflog"
)

// Packets that a rule logs come with the rule's prefix, the interface and the first
// bytes, and no others do.
func TestLog(t *testing.T) {
	t.Parallel()
	ns := nettest.New(t)
	var log *nflog.Log
	open := func(group uint16) (l *nflog.Log, err error) {
		ns.Run(func() { l, err = nflog.Open(group, 40) })
		return l, err
	}
	log, err := open(77)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	if other, err := open(77); !errors.Is(err, unix.EPERM) || !strings.Contains(err.Error(), "another program may read this group") {
		t.Errorf("a second reader: %v, %v", other, err)
	}
	if other, err := open(78); err != nil {
		t.Error(err)
	} else {
		other.Close()
	}
	ns.Exec("nft", "add table inet t; add chain inet t f { type filter hook input priority filter; }; add rule inet t f udp dport 9 log prefix deny-this group 77 drop; add rule inet t f udp dport 8 log group 78 drop")
	ctx, cancel := context.WithCancel(t.Context())
	var got []nflog.Packet
	done := make(chan error, 1)
	came := make(chan nflog.Packet, 10)
	go func() {
		done <- log.Run(ctx, func(p nflog.Packet) {
			p.Payload = append([]byte(nil), p.Payload...)
			came <- p
		}, func() {})
	}()
	ns.Run(func() {
		for _, to := range []string{"127.0.0.1:8", "127.0.0.1:9", "[::1]:9"} {
			c, err := net.Dial("udp", to)
			if err != nil {
				t.Error(err)
				return
			}
			c.Write(make([]byte, 100))
			c.Close()
		}
	})
	for range 2 {
		got = append(got, <-came)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	for i, p := range got {
		ports := p.Payload[20:24] // of UDP in IPv4
		if i == 1 {
			if p.Payload[0]>>4 != 6 {
				t.Errorf("the second packet is %x", p.Payload)
			}
			continue
		}
		if p.Prefix != "deny-this" || p.In == 0 || p.Out != 0 || len(p.Payload) != 40 || p.Payload[0]>>4 != 4 || binary.BigEndian.Uint16(ports[2:]) != 9 {
			t.Errorf("packet %+v", p)
		}
	}
}
