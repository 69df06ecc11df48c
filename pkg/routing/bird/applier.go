package bird

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"reflect"
	"slices"
	"strings"
	"sync"
	"time"

	"flock.fritzlab.net/flock/internal/backoff"
	"flock.fritzlab.net/flock/pkg/routing"
	"flock.fritzlab.net/flock/pkg/routing/birdc"
)

const (
	// undoAfter is when BIRD reverts to its previous configuration if the agent has
	// not confirmed the new one.
	undoAfter = 30 * time.Second
	// loadWithin bounds the wait for BIRD to have loaded what it accepted.
	loadWithin = 10 * time.Second

	firstRetry = 100 * time.Millisecond
	lastRetry  = 5 * time.Second

	// settle is how long after a change in BIRD its sessions are asked for: a
	// session goes through several states at once.
	settle = 50 * time.Millisecond
	// BIRD logs changes of sessions, but not of counters or of OSPF's neighbors.
	// It is asked for those at intervals, more often while a session is down or
	// where BIRD does not log to its clients (version 3).
	askWhileDown = 2 * time.Second
	askWhileUp   = 15 * time.Second
	// BIRD does not log when it has recovered from a restart.
	askWhileRecovering = 200 * time.Millisecond
	// enableEvery is the pause between attempts to start sessions that could not
	// listen.
	enableEvery = 5 * time.Second
)

// RefusedError: BIRD did not accept a configuration. The one before it stays in
// force and on disk.
type RefusedError struct {
	File    string // where the refused configuration is kept
	Message string // BIRD's own, with file, line and column
}

func (e *RefusedError) Error() string {
	return fmt.Sprintf("BIRD rejects the new configuration and keeps the one before: %s (see %s)", e.Message, e.File)
}

// State is what an Applier has come to.
type State struct {
	// Loaded: BIRD runs the configuration that was set last.
	Loaded bool
	// Err is why not: a *RefusedError, birdc.ErrAbsent, os.ErrDeadlineExceeded …
	Err error
	// Applies counts the configurations that BIRD was asked to load.
	Applies int
	// BIRD as last seen; zero before.
	BIRD birdc.Status
	// Sessions with the routers, as BIRD said last; none while BIRD is away.
	Sessions []routing.Session
	// Silent: BIRD runs and has not answered for some time, so that Sessions may be over.
	Silent bool
	// Recovering says for what BIRD holds back announcements and withdrawals after
	// its start as a restart; "" once it does not.
	Recovering string
}

// ApplierConfig is what an Applier needs.
type ApplierConfig struct {
	// Dir holds bird.conf and bears the same path where BIRD runs.
	Dir string
	// Socket is the path of BIRD's control socket.
	Socket string
	// Check judges a file where no BIRD runs that could: CheckFile. It returns
	// a *birdc.ReplyError or another error with BIRD's message.
	Check func(ctx context.Context, path string) error
	// OnChange is called from Run with every new State, one at a time. May be nil.
	OnChange func(State)
	Log      *slog.Logger
}

// Applier keeps the bird.conf of a node and the running BIRD at the
// configuration that was set last. It acts only on a difference: BIRD says by
// the flock_config it has loaded whether there is one, so that neither a
// restart of the agent nor one of BIRD leads to a reconfiguration.
type Applier struct {
	ApplierConfig
	inbox   chan []byte
	enabled time.Time // when sessions were enabled last; Run's own

	mu     sync.Mutex // guards what follows
	state  State
	intent routing.Intent
	// departing is the configuration with which the node leaves; nil: none is wanted.
	departing []byte
	blind     bool // BIRD does not report what changes

	unanswered time.Time // since when BIRD runs and cannot be asked, Run's own; zero: it can
}

// NewApplier returns an Applier that does nothing until Run.
func NewApplier(c ApplierConfig) *Applier {
	return &Applier{ApplierConfig: c, inbox: make(chan []byte, 1)}
}

// Set replaces the wanted configuration. It does not wait. One goroutine calls it.
func (a *Applier) Set(in routing.Intent) {
	leaving := in
	leaving.Departing = true
	a.mu.Lock()
	a.intent, a.departing = in, Render(leaving)
	a.mu.Unlock()
	a.set(Render(in))
}

func (a *Applier) set(conf []byte) {
	select {
	case <-a.inbox: // superseded before Run took it
	default:
	}
	a.inbox <- conf
}

// State returns the last State.
func (a *Applier) State() State {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.state
}

// Run works until ctx ends. It looks at BIRD when a configuration is set, when
// BIRD went away or was reconfigured by somebody else, and again with growing
// delay while the wanted configuration is not loaded. While it is, Run follows
// the sessions.
func (a *Applier) Run(ctx context.Context) {
	var (
		want  []byte
		delay = backoff.Backoff{First: firstRetry, Last: lastRetry}
		retry = time.NewTimer(0)
		ask   = time.NewTimer(0)
		last  time.Time                // of the last look at BIRD
		look  = make(chan struct{}, 1) // BIRD did something that calls for one
		moved = make(chan struct{}, 1) // a session has moved
		soon  bool                     // ask is about to fire for that
		watch = func() {}              // ends the watcher of the BIRD seen last
	)
	retry.Stop()
	ask.Stop()
	defer func() { watch() }()
	for {
		select {
		case <-ctx.Done():
			return
		case want = <-a.inbox:
			delay.Reset()
		case <-look:
			if wait := time.Until(last.Add(firstRetry)); wait > 0 {
				retry.Reset(wait) // whatever BIRD does, it is not looked at all the time
				continue
			}
		case <-retry.C:
		case <-moved:
			if !soon { // or lines without end would put it off for ever
				soon = true
				ask.Reset(settle)
			}
			continue
		case <-ask.C:
			soon = false
			ask.Reset(a.ask(ctx))
			continue
		}
		if want == nil {
			continue
		}
		watch()
		last = time.Now()
		conn, err := a.ensure(ctx, want)
		if ctx.Err() != nil {
			if conn != nil {
				conn.Close()
			}
			return
		}
		a.publish(err)
		if err != nil {
			watch = func() {}
			ask.Reset(0) // a BIRD that refuses a configuration runs another
			retry.Reset(delay.Next())
			continue
		}
		retry.Stop()
		delay.Reset()
		watch = a.watch(ctx, conn, look, moved)
		ask.Reset(0)
	}
}

// ask brings the sessions up to date and says when to ask next.
func (a *Applier) ask(ctx context.Context) time.Duration {
	a.mu.Lock()
	in := a.intent
	a.mu.Unlock()
	sessions, recovering, err := a.readSessions(ctx, in)
	if ctx.Err() != nil {
		return askWhileUp
	}
	switch {
	case err == nil, errors.Is(err, birdc.ErrAbsent):
		a.unanswered = time.Time{}
	case a.unanswered.IsZero():
		a.unanswered = time.Now()
		return askWhileDown
	case time.Since(a.unanswered) < believe:
		a.setSilent(time.Since(a.unanswered) >= doubt)
		return askWhileDown
	}
	a.setSilent(!a.unanswered.IsZero())
	a.mu.Lock()
	keepSince(sessions, a.state.Sessions)
	same := reflect.DeepEqual(sessions, a.state.Sessions) && recovering == a.state.Recovering
	a.state.Sessions, a.state.Recovering = sessions, recovering
	s, blind := a.state, a.blind
	a.mu.Unlock()
	if !same && a.OnChange != nil {
		a.OnChange(s)
	}
	if recovering != "" {
		return askWhileRecovering
	}
	if err != nil || blind || slices.ContainsFunc(sessions, unsettled) {
		return askWhileDown
	}
	return askWhileUp
}

func (a *Applier) setSilent(silent bool) {
	a.mu.Lock()
	same := a.state.Silent == silent
	a.state.Silent = silent
	s := a.state
	a.mu.Unlock()
	if !same && a.OnChange != nil {
		a.OnChange(s)
	}
}

// believe is for how long the sessions seen last stand where BIRD runs and could not be asked
// (EMFILE, or it was busy). A BIRD that answers nobody for longer has lost them; after doubt it
// is said that it does not answer.
const (
	doubt   = 10 * time.Second
	believe = 30 * time.Second
)

// readSessions asks BIRD for the sessions with the peers of in and what it recovers
// from. It starts sessions that could not listen before.
func (a *Applier) readSessions(ctx context.Context, in routing.Intent) (found []routing.Session, recovering string, err error) {
	conn, err := birdc.Dial(ctx, a.Socket)
	if err != nil {
		return nil, "", err
	}
	defer conn.Close()
	protocols, err := conn.ShowProtocols(ctx)
	if err != nil {
		return nil, "", err
	}
	var neighbors []birdc.OSPFNeighbor
	if slices.ContainsFunc(protocols, isOSPF) {
		if neighbors, err = conn.ShowOSPFNeighbors(ctx); err != nil {
			return nil, "", err
		}
	}
	// BIRD does not try again by itself, nor when it loads a configuration in which
	// the session is the same.
	if deaf := withoutListener(protocols, in); len(deaf) > 0 && time.Since(a.enabled) >= enableEvery {
		a.enabled = time.Now()
		for _, name := range deaf {
			if err := conn.Enable(ctx, name); err != nil {
				return nil, "", err
			}
		}
	}
	found = sessions(protocols, neighbors)
	for i := range found {
		explain(in, &found[i])
	}
	return found, recovery(protocols), nil
}

// unsettled is a session that is down, or over which nothing has been announced yet:
// after a restart BIRD waits with that.
func unsettled(s routing.Session) bool {
	return !s.Up || !slices.ContainsFunc(s.Families, func(f routing.SessionFamily) bool { return f.Sent > 0 })
}

// watch follows BIRD over conn. It asks for a look when BIRD goes away or loads a
// configuration, and says so when anything else moves. The returned function ends
// it and waits for its end.
func (a *Applier) watch(ctx context.Context, conn *birdc.Conn, look, moved chan<- struct{}) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	wake := func(c chan<- struct{}) {
		select {
		case c <- struct{}{}:
		default:
		}
	}
	err := conn.Echo(ctx)
	a.mu.Lock()
	a.blind = err != nil
	a.mu.Unlock()
	go func() {
		defer close(done)
		err := conn.Watch(ctx, func(line string) {
			if strings.HasPrefix(line, "Reconfigured") {
				wake(look)
			}
			wake(moved)
		})
		if ctx.Err() == nil {
			a.Log.Warn("lost the connection to BIRD", "error", err)
			wake(look)
		}
	}()
	return func() { cancel(); <-done }
}

func (a *Applier) publish(err error) {
	a.mu.Lock()
	known := err == nil || a.state.Err != nil && a.state.Err.Error() == err.Error()
	a.state.Loaded, a.state.Err = err == nil, err
	s := a.state
	a.mu.Unlock()
	if !known {
		a.Log.Warn("BIRD does not run the configuration of this node", "error", err)
	}
	if a.OnChange != nil {
		a.OnChange(s)
	}
}

// ensure brings BIRD to want, and returns the connection over which it was seen
// to have it.
func (a *Applier) ensure(ctx context.Context, want []byte) (*birdc.Conn, error) {
	conn, err := birdc.Dial(ctx, a.Socket)
	if errors.Is(err, birdc.ErrAbsent) && (a.RanBefore() || !speaksOSPF(want)) {
		// BIRD will start from the file, so it must hold what is wanted.
		if _, ierr := a.install(ctx, want, a.Check); ierr != nil {
			return nil, ierr
		}
	}
	if err != nil {
		return nil, err
	}
	if err := a.converge(ctx, conn, want); err != nil {
		conn.Close()
		return nil, err
	}
	if err := a.installDeparting(); err != nil {
		a.Log.Warn("cannot write the configuration of a departing node", "error", err)
	}
	return conn, nil
}

func (a *Applier) converge(ctx context.Context, conn *birdc.Conn, want []byte) error {
	if err := a.meet(ctx, conn); err != nil {
		return err
	}
	before, err := a.install(ctx, want, conn.Check)
	if err != nil {
		return err
	}
	if ok, err := runs(ctx, conn, want); err != nil {
		return err
	} else if ok {
		return confirmLeft(ctx, conn)
	}
	a.count()
	done, err := conn.Configure(ctx, birdc.Options{File: a.path(confName), Undo: undoAfter})
	if refusal := new(birdc.ReplyError); errors.As(err, &refusal) && refusal.Code >= 8000 {
		return errors.Join(a.reject(a.path(confName), refusal.Text), a.restore(before))
	} else if err != nil {
		return err
	}
	if err := awaitLoaded(ctx, conn, want); err != nil {
		return err
	}
	if err := conn.Confirm(ctx); err != nil {
		return err
	}
	a.Log.Info("BIRD has loaded a new configuration", "digest", digestIn(want), "complete", done)
	return nil
}

// meet takes note of which BIRD this is.
func (a *Applier) meet(ctx context.Context, conn *birdc.Conn) error {
	s, err := conn.ShowStatus(ctx)
	if err != nil {
		return err
	}
	a.mu.Lock()
	before := a.state.BIRD
	a.state.BIRD = s
	a.mu.Unlock()
	if before.Version != s.Version || before.Boot.Sub(s.Boot).Abs() >= jitter {
		a.Log.Info("connected to BIRD", "version", s.Version, "since", s.Boot)
	}
	return nil
}

func (a *Applier) count() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.state.Applies++
}

// runs reports whether BIRD has loaded want. A configuration without a digest is
// somebody else's.
func runs(ctx context.Context, conn *birdc.Conn, want []byte) (bool, error) {
	loaded, err := conn.Eval(ctx, digestSymbol)
	if refusal := new(birdc.ReplyError); errors.As(err, &refusal) {
		return false, nil
	}
	return err == nil && loaded == digestIn(want), err
}

// confirmLeft confirms what an agent has left that died before it could.
func confirmLeft(ctx context.Context, conn *birdc.Conn) error {
	waits, err := conn.Unconfirmed(ctx)
	if err != nil || !waits {
		return err
	}
	return conn.Confirm(ctx)
}

// awaitLoaded waits while BIRD is busy with an earlier reconfiguration.
func awaitLoaded(ctx context.Context, conn *birdc.Conn, want []byte) error {
	ctx, cancel := context.WithTimeoutCause(ctx, loadWithin, fmt.Errorf("BIRD has accepted the configuration but not loaded it within %s", loadWithin))
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		if ok, err := runs(ctx, conn, want); ok || err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-tick.C:
		}
	}
}
