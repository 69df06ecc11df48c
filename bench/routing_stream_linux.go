package bench

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"flock.fritzlab.net/flock/lab/member"
)

// stream is packets that are sent at a steady pace to an echo server, which sends
// them back.
type stream struct {
	Name string
	// NetNS is the file of the network namespace that it begins in.
	NetNS string
	To    netip.AddrPort
	// Flows is how many source ports take turns. Routers spread flows, not
	// packets, over equal routes.
	Flows int
}

// streamsInput is streams that are sent together.
type streamsInput struct {
	Streams []stream
	// Every is the time between two packets of the same stream.
	Every time.Duration
}

// streamReport is what became of a stream's packets. Times are CLOCK_MONOTONIC, in
// nanoseconds.
type streamReport struct {
	Name string
	// Due is how many the pace asked for, Sent how many of these were sent: a
	// machine that is too busy sends fewer and loses none by that.
	Due, Sent int
	// Lost were sent, or could not be for want of a route, and not answered.
	Lost int
	// FirstLost and LastLost are when the first and the last one of those were sent.
	FirstLost, LastLost int64
	// Recovered is when the first packet was answered after which none is lost;
	// 0: none was.
	Recovered int64
}

const (
	// streamPatience is for the first answer of each flow.
	streamPatience = 10 * time.Second
	// streamGrace is for the last answers.
	streamGrace = 500 * time.Millisecond
)

// answered is when a packet came back.
type answered struct {
	seq int
	at  int64
}

// streaming is a stream being sent. The sender writes sent, the receiver answers;
// both have ended when the report is made of them.
type streaming struct {
	stream
	fds     []int
	sent    []int64 // by sequence number; 0: it was not sent in time
	answers []answered
	seen    []bool // by flow: it has been answered
	flowing int    // how many have
}

// sendStreams sends until the context ends and reports. When each flow has been
// answered it says so on out, in a line of its own. Like [observe] it is to be a
// process of its own, and takes real-time priority.
func sendStreams(ctx context.Context, in streamsInput, out io.Writer) ([]streamReport, error) {
	if err := hurry(); err != nil {
		return nil, err
	}
	var all []*streaming
	defer func() {
		for _, s := range all {
			for _, fd := range s.fds {
				unix.Close(fd)
			}
		}
	}()
	for _, wanted := range in.Streams {
		s := &streaming{stream: wanted, seen: make([]bool, wanted.Flows)}
		all = append(all, s)
		if err := s.open(); err != nil {
			return nil, fmt.Errorf("stream %s: %w", s.Name, err)
		}
	}
	sending, stop := context.WithCancel(ctx)
	defer stop()
	receiving, stopReceiving := context.WithCancel(context.WithoutCancel(ctx))
	defer stopReceiving()
	flowing, received := make(chan struct{}), make(chan error, 1)
	go func() {
		err := receive(receiving, all, flowing)
		stop() // there is no use in sending on
		received <- err
	}()
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		send(sending, all, in.Every)
	}()

	var since int64
	var failed error
	patience := time.NewTimer(streamPatience)
	defer patience.Stop()
	select {
	case <-flowing:
		since = monotonic()
		fmt.Fprintln(out, flowingLine)
		<-sending.Done()
	case <-patience.C:
		failed = fmt.Errorf("no answer within %s", streamPatience)
		stop()
	case <-sending.Done():
		failed = errors.New("interrupted before each flow was answered")
	}
	<-sent
	time.Sleep(streamGrace)
	stopReceiving()
	if err := errors.Join(<-received, failed); err != nil {
		return nil, fmt.Errorf("%w: %s", err, silent(all))
	}
	var reports []streamReport
	for _, s := range all {
		reports = append(reports, s.report(since))
	}
	return reports, nil
}

// flowingLine is printed when every flow has been answered.
const flowingLine = `"flowing"`

func silent(all []*streaming) (names []string) {
	for _, s := range all {
		if s.flowing < len(s.fds) {
			names = append(names, fmt.Sprintf("%s: %d of %d flows answered", s.Name, s.flowing, len(s.fds)))
		}
	}
	return names
}

// open makes a socket for each flow. They are not connected, so that the network's
// complaint about one packet does not keep the next from being sent.
func (s *streaming) open() error {
	return member.InNet(s.NetNS, func() error {
		family := unix.AF_INET6
		if s.To.Addr().Is4() {
			family = unix.AF_INET
		}
		for range s.Flows {
			fd, err := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				return err
			}
			s.fds = append(s.fds, fd)
			if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 4<<20); err != nil {
				return err
			}
		}
		return nil
	})
}

// send sends a packet of each stream every so often until the context ends. What
// could not be sent while its time was on is left out, not made up for.
func send(ctx context.Context, all []*streaming, every time.Duration) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	to := make([]unix.Sockaddr, len(all))
	for i, s := range all {
		to[i] = sockaddr(s.To)
	}
	packet := make([]byte, 8)
	start := monotonic()
	for seq := 0; ctx.Err() == nil; seq++ {
		due := unix.NsecToTimespec(start + int64(seq)*int64(every))
		for unix.ClockNanosleep(unix.CLOCK_MONOTONIC, unix.TIMER_ABSTIME, &due, nil) == unix.EINTR {
		}
		for now := int((monotonic() - start) / int64(every)); seq < now; seq++ {
			for _, s := range all {
				s.sent = append(s.sent, 0)
			}
		}
		for i, s := range all {
			binary.BigEndian.PutUint32(packet, uint32(i))
			binary.BigEndian.PutUint32(packet[4:], uint32(seq))
			s.sent = append(s.sent, monotonic())
			// Without a route it fails at once, which is a loss as any other.
			_ = unix.Sendto(s.fds[seq%len(s.fds)], packet, 0, to[i])
		}
	}
}

func sockaddr(to netip.AddrPort) unix.Sockaddr {
	if to.Addr().Is4() {
		return &unix.SockaddrInet4{Addr: to.Addr().As4(), Port: int(to.Port())}
	}
	return &unix.SockaddrInet6{Addr: to.Addr().As16(), Port: int(to.Port())}
}

// receive notes what comes back until the context ends, or the process that wants
// to know has. It closes flowing when each flow has been answered.
func receive(ctx context.Context, all []*streaming, flowing chan<- struct{}) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var poll []unix.PollFd
	silent := 0
	for _, s := range all {
		for _, fd := range s.fds {
			poll = append(poll, unix.PollFd{Fd: int32(fd), Events: unix.POLLIN})
			silent++
		}
	}
	parent, packet := os.Getppid(), make([]byte, 64)
	for ctx.Err() == nil {
		if os.Getppid() != parent {
			return errors.New("the process that waits for the report has ended")
		}
		if _, err := unix.Poll(poll, 50); err != nil && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("poll: %w", err)
		}
		for _, p := range poll {
			for p.Revents&unix.POLLIN != 0 {
				n, _, err := unix.Recvfrom(int(p.Fd), packet, 0)
				at := monotonic()
				if err != nil {
					break // there is no more
				}
				if n != 8 {
					continue
				}
				i, seq := int(binary.BigEndian.Uint32(packet)), int(binary.BigEndian.Uint32(packet[4:]))
				if i >= len(all) {
					continue
				}
				s := all[i]
				s.answers = append(s.answers, answered{seq, at})
				if flow := seq % len(s.fds); !s.seen[flow] {
					s.seen[flow] = true
					s.flowing++
					if silent--; silent == 0 {
						close(flowing)
					}
				}
			}
		}
	}
	return nil
}

// report counts the packets that were sent since all flowed.
func (s *streaming) report(since int64) streamReport {
	r := streamReport{Name: s.Name}
	back := make([]int64, len(s.sent))
	for _, a := range s.answers {
		if a.seq < len(back) && back[a.seq] == 0 {
			back[a.seq] = a.at
		}
	}
	first := slices.IndexFunc(s.sent, func(at int64) bool { return at > since })
	if first < 0 {
		return r
	}
	r.Due = len(s.sent) - first
	last := first - 1
	for seq, at := range s.sent {
		if at <= since {
			continue
		}
		r.Sent++
		if back[seq] == 0 {
			if r.Lost++; r.Lost == 1 {
				r.FirstLost = at
			}
			r.LastLost, last = at, seq
		}
	}
	for _, at := range back[last+1:] {
		if at != 0 && (r.Recovered == 0 || at < r.Recovered) {
			r.Recovered = at
		}
	}
	return r
}

// sender is the process that sends streams.
type sender struct{ *child }

// streamTogether starts streams and returns when they flow.
func streamTogether(ctx context.Context, in streamsInput) (*sender, error) {
	c, err := startChild(ctx, senderName, in)
	if err != nil {
		return nil, err
	}
	s := &sender{c}
	line, err := c.line()
	if err == nil && line != flowingLine {
		err = fmt.Errorf("the sender of streams said %q", line)
	}
	if err != nil {
		return nil, errors.Join(err, c.end())
	}
	return s, nil
}

// stop ends the streams and reports.
func (s *sender) stop() ([]streamReport, error) {
	s.interrupt()
	line, err := s.line()
	var reports []streamReport
	if err == nil {
		err = json.Unmarshal([]byte(line), &reports)
	}
	return reports, errors.Join(err, s.end())
}
