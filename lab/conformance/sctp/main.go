// Command sctp is agnhost for kernels without SCTP: `porter` and `connect` over SCTP
// are done here, by raw sockets, and all else by the genuine agnhost.
//
// A policy sees no more of a connection than its packets, so what is done of SCTP
// (RFC 9260) is how an association begins: the client's INIT, and the server's INIT ACK.
// Flags and output are those of agnhost.
package main

import (
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"net"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

const genuine = "/agnhost-genuine"

func main() {
	args := os.Args[1:]
	switch {
	case len(args) > 0 && args[0] == "porter" && len(servedPorts(os.Environ())) > 0:
		if err := serve(servedPorts(os.Environ())); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	case len(args) > 0 && args[0] == "connect" && slices.Contains(args, "--protocol=sctp"):
		os.Exit(connect(args[1:]))
	default:
		err := syscall.Exec(genuine, append([]string{"agnhost"}, args...), os.Environ())
		fmt.Fprintf(os.Stderr, "%s: %v\n", genuine, err)
		os.Exit(1)
	}
}

// servedPorts are those of variables like SERVE_SCTP_PORT_9003.
func servedPorts(environ []string) (ports []uint16) {
	for _, v := range environ {
		name, _, _ := strings.Cut(v, "=")
		if number, ok := strings.CutPrefix(name, "SERVE_SCTP_PORT_"); ok {
			if port, err := strconv.ParseUint(number, 10, 16); err == nil {
				ports = append(ports, uint16(port))
			}
		}
	}
	return ports
}

// serve answers on all addresses of the network namespace until SIGTERM.
func serve(ports []uint16) error {
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return err
	}
	failed := make(chan error)
	for _, a := range addrs {
		ip := a.(*net.IPNet).IP
		if ip.IsLinkLocalUnicast() {
			continue
		}
		conn, err := net.ListenIP(network(ip), &net.IPAddr{IP: ip})
		if err != nil {
			return err
		}
		go func() { failed <- answer(conn, ports) }()
	}
	end := make(chan os.Signal, 1)
	signal.Notify(end, syscall.SIGTERM, syscall.SIGINT)
	select {
	case <-end:
		return nil
	case err := <-failed:
		return err
	}
}

func answer(conn *net.IPConn, ports []uint16) error {
	b := make([]byte, 1<<16)
	for {
		n, peer, err := conn.ReadFromIP(b)
		if err != nil {
			return err
		}
		in, ok := parse(b[:n])
		if !ok || in.chunk != chunkInit || !slices.Contains(ports, in.destination) {
			continue
		}
		out := packet{source: in.destination, destination: in.source, tag: in.initiate, chunk: chunkInitAck, initiate: rand.Uint32() | 1}
		if _, err := conn.WriteToIP(out.bytes(), peer); err != nil {
			return err
		}
	}
}

// connect says on stderr what has become of a connection, as agnhost does, and returns
// the exit status.
func connect(args []string) int {
	flags := flag.NewFlagSet("connect", flag.ContinueOnError)
	timeout := flags.Duration("timeout", 10*time.Second, "")
	flags.String("protocol", "", "")
	if err := flags.Parse(args); err != nil || flags.NArg() != 1 {
		fmt.Fprintln(os.Stderr, "OTHER: usage: connect --protocol=sctp [--timeout=DURATION] HOST:PORT")
		return 1
	}
	switch err := dial(flags.Arg(0), *timeout); {
	case err == nil:
		return 0
	case errors.Is(err, os.ErrDeadlineExceeded):
		fmt.Fprintln(os.Stderr, "TIMEOUT")
	case errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, syscall.ENOPROTOOPT):
		fmt.Fprintln(os.Stderr, "REFUSED")
	default:
		fmt.Fprintln(os.Stderr, "OTHER:", err)
	}
	return 1
}

func dial(target string, timeout time.Duration) error {
	host, service, err := net.SplitHostPort(target)
	if err != nil {
		return err
	}
	port, err := strconv.ParseUint(service, 10, 16)
	if err != nil {
		return err
	}
	peer, err := net.ResolveIPAddr("ip", host)
	if err != nil {
		return err
	}
	conn, err := net.DialIP(network(peer.IP), nil, peer)
	if err != nil {
		return err
	}
	defer conn.Close()
	out := packet{
		source: uint16(32768 + rand.IntN(28000)), destination: uint16(port),
		chunk: chunkInit, initiate: rand.Uint32() | 1,
	}
	deadline := time.Now().Add(timeout)
	b := make([]byte, 1<<16)
	for again := time.Second; ; {
		if _, err := conn.Write(out.bytes()); err != nil {
			return err
		}
		until := time.Now().Add(again)
		if until.After(deadline) {
			until = deadline
		}
		if err := conn.SetReadDeadline(until); err != nil {
			return err
		}
		for {
			n, err := conn.Read(b)
			if errors.Is(err, os.ErrDeadlineExceeded) && time.Now().Before(deadline) {
				break // send again
			}
			if err != nil {
				return err
			}
			in, ok := parse(b[:n])
			if !ok || in.source != out.destination || in.destination != out.source || in.tag != out.initiate {
				continue
			}
			switch in.chunk {
			case chunkInitAck:
				return nil
			case chunkAbort:
				return syscall.ECONNREFUSED
			}
		}
	}
}

func network(ip net.IP) string {
	if ip.To4() != nil {
		return "ip4:132"
	}
	return "ip6:132"
}

const (
	chunkInit, chunkInitAck, chunkAbort = 1, 2, 6

	commonHeader, initChunk = 12, 20
)

// A packet is one of SCTP's with one chunk, an INIT or an INIT ACK if it has an
// initiate tag.
type packet struct {
	source, destination uint16
	tag                 uint32
	chunk               byte
	initiate            uint32
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func (p packet) bytes() []byte {
	b := make([]byte, commonHeader+initChunk)
	binary.BigEndian.PutUint16(b[0:], p.source)
	binary.BigEndian.PutUint16(b[2:], p.destination)
	binary.BigEndian.PutUint32(b[4:], p.tag)
	c := b[commonHeader:]
	c[0] = p.chunk
	binary.BigEndian.PutUint32(c[4:], p.initiate)
	binary.BigEndian.PutUint32(c[8:], 1<<16) // receiver window
	binary.BigEndian.PutUint16(c[12:], 1)    // outbound streams
	binary.BigEndian.PutUint16(c[14:], 1)    // inbound streams
	binary.BigEndian.PutUint32(c[16:], p.initiate)
	if p.chunk == chunkInitAck {
		const stateCookie = 7
		b = append(b, 0, stateCookie, 0, 8, 'f', 'l', 'o', 'c')
	}
	binary.BigEndian.PutUint16(b[commonHeader+2:], uint16(len(b)-commonHeader))
	binary.LittleEndian.PutUint32(b[8:], crc32.Checksum(b, castagnoli))
	return b
}

// parse reads a packet up to its first chunk.
func parse(b []byte) (p packet, ok bool) {
	if len(b) < commonHeader+4 {
		return p, false
	}
	p.source, p.destination = binary.BigEndian.Uint16(b), binary.BigEndian.Uint16(b[2:])
	p.tag, p.chunk = binary.BigEndian.Uint32(b[4:]), b[commonHeader]
	if p.chunk == chunkInit || p.chunk == chunkInitAck {
		if len(b) < commonHeader+initChunk {
			return p, false
		}
		p.initiate = binary.BigEndian.Uint32(b[commonHeader+4:])
	}
	return p, true
}
