package nettest

import (
	"net"
	"testing"
)

// Serve calls answer with each connection to l, one after the other, and closes it. It closes l
// when the test ends, if nobody has before.
func Serve(t testing.TB, l net.Listener, answer func(net.Conn)) {
	done := make(chan struct{})
	t.Cleanup(func() { l.Close(); <-done })
	go func() {
		defer close(done)
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			answer(conn)
			conn.Close()
		}
	}()
}
