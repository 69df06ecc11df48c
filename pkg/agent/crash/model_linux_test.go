package crash

import (
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

var (
	steps    = flag.Int("steps", 30, "of the random scripts of TestRandomScripts, in all")
	stepsFor = flag.Duration("for", 0, "how long TestRandomScripts goes on, in place of -steps")
	nodes    = flag.Int("nodes", 6, "on which TestRandomScripts carries out scripts at the same time")
	script   = flag.String("script", "", "file with the script that TestRandomScripts carries out, in place of random ones")
)

// A script is what runtime, operator, Kubernetes and others do to a node, one step a line. A step
// that makes no sense when its turn comes, such as DEL of a pod that was never attached, is one that
// a runtime makes too.
//
//	add POD           ADD; the runtime takes the pod for attached if it is answered
//	del POD           DEL until it succeeds
//	STEP & STEP ...   ADD and DEL of different pods at once
//	end POD           the sandbox ends without DEL
//	gc                GC, of which all attached pods are valid
//	kill N            the agent is killed before its Nth effect from now on
//	fail N ERRNO      a system call of the agent, or a request to the API server, fails
//	restart           the agent is killed and starts
//	reboot WHAT       the node is rebooted, and /run is "kept" or "lost"
//	meddle WHAT       another program changes flock's state in the kernel
//	turn CHANGE TO    one of the changes goes on or off: readiness of a pod with an anycast address,
//	                  a policy, a pod with a claim, kube-proxy's endpoint, a BGP peer
//	api WHAT          the API server is "away" or "back", or "forgets" what changed before
//	settle            the agent and the API server are there, and the node is what it was told
type step = string

// randomScript makes a script that ends settled, with changes at the API server if there is one. In
// one of four the agent is killed all the time; in the others it lives for longer, and comes to do
// more.
func randomScript(r *rand.Rand, n int, api bool) (script []step) {
	kills := 3
	if r.IntN(4) == 0 {
		kills = 15
	}
	pod := func() string { return fmt.Sprint("pod-", r.IntN(5)) }
	for range n {
		var s step
		k := r.IntN(100)
		if api && r.IntN(6) == 0 {
			k = 100
		}
		switch {
		case k < kills-kills/5:
			s = fmt.Sprint("kill ", 1+r.IntN(16))
		case k < kills:
			s = "restart"
		case k < 43:
			s = "add " + pod()
		case k < 69:
			s = "del " + pod()
		case k < 73:
			var all []string
			for _, i := range r.Perm(5)[:2+r.IntN(3)] {
				all = append(all, fmt.Sprint([]string{"add", "del"}[r.IntN(2)], " pod-", i))
			}
			s = strings.Join(all, " & ")
		case k < 77:
			s = "end " + pod()
		case k < 81:
			s = "gc"
		case k < 89:
			s = fmt.Sprintf("fail %d %s", 1+r.IntN(40), errnos[r.IntN(len(errnos))])
		case k < 93:
			names := []string{"routes", "tables", "links", "neighbor", "sysctls"}
			s = "meddle " + names[r.IntN(len(names))]
		case k < 94 && !api:
			s = "reboot " + []string{"kept", "lost"}[r.IntN(2)]
		case k < 100:
			s = "settle"
		case r.IntN(8) == 0:
			s = "api " + []string{"away", "back", "forgets"}[r.IntN(3)]
		default:
			s = "turn " + changes[r.IntN(len(changes))].name + " " + []string{"on", "off"}[r.IntN(2)]
		}
		script = append(script, s)
	}
	return append(script, "settle")
}

// needsAPI says whether one of the steps is Kubernetes'.
func needsAPI(script []step) bool {
	return slices.ContainsFunc(script, func(s step) bool { return strings.HasPrefix(s, "turn ") || strings.HasPrefix(s, "api ") })
}

// A life is a node on which script follows script, as long as each leaves it what it must be. The
// processors and the heap of its agents are drawn too: they order its goroutines another way.
type life struct {
	*node
	world     *world // with the API server; nil: there is none
	memory    *memory
	t         *recorder
	sandboxes map[string]*pod // those that the runtime has not deleted, by name
	done      []step          // all of its scripts
	flushed   bool            // kube-proxy's rules too, since the node was settled last
	failing   bool            // a call was to fail, since then
}

func newLife(t testing.TB, r *rand.Rand, api bool) *life {
	l := &life{node: &node{}, t: &recorder{TB: t}, sandboxes: map[string]*pod{}}
	l.t.try(func() {
		env := []string{fmt.Sprint("GOMAXPROCS=", 1+r.IntN(2)), "GOGC=2000", "FLOCK_FAULTS_TRACE=no"}
		if !api {
			l.node = newNode(l.t)
			l.env = env
			l.start()
			return
		}
		l.memory = newMemory()
		l.world = newWorld(l.t, l.memory, env...)
		l.node = l.world.node
		attachBystanders(l.node)
		l.eventually("at the start", l.world.all)
		l.world.probe(bystanders(l.node)[0], 5*time.Millisecond)
	})
	return l
}

// carriesOut does a script, and says whether the node is what it must be.
func (l *life) carriesOut(script []step) bool {
	l.done = append(l.done, script...)
	l.t.try(func() {
		for i, s := range script {
			l.carryOut(s, fmt.Sprintf("step %d, %s", i+1, s))
		}
	})
	return !l.t.failed
}

func (l *life) running() {
	if !l.alive() {
		l.start()
	}
}

// command is carried out by an agent that runs: a kill that was ordered before may come at any time.
func (l *life) command(s string) {
	l.eventually(s, func() error {
		l.running()
		_, err := l.tryFaults(s)
		return err
	})
}

// mustDel is DEL until it succeeds.
func (l *life) mustDel(p *pod) {
	l.must("DEL", func() error {
		l.running()
		return l.del(p)
	})
}

// pod is the one of that name, with a sandbox.
func (l *life) pod(name string) *pod {
	if l.sandboxes[name] == nil {
		k, err := strconv.Atoi(strings.TrimPrefix(name, "pod-"))
		if err != nil {
			l.t.Fatalf("%q is no pod", name)
		}
		l.sandboxes[name] = l.sandbox(name, 9000+k)
	}
	return l.sandboxes[name]
}

// carryOut does a step, and fails the test where the node is not what it must be.
func (l *life) carryOut(s step, what string) {
	words := append(strings.Fields(s), "", "")
	if l.world != nil {
		l.world.prober.at(what)
	}
	switch {
	case strings.Contains(s, " & "):
		l.together(strings.Split(s, " & "))
	case words[0] == "add":
		l.running()
		l.add(l.pod(words[1]))
	case words[0] == "del":
		l.mustDel(l.pod(words[1]))
	case words[0] == "end":
		end(l.node, l.pod(words[1]))
		// A runtime deletes what it knows to have been there, sooner or later.
		delete(l.sandboxes, words[1])
	case words[0] == "gc":
		l.running()
		l.gc(slices.Collect(maps.Values(l.pods))...)
	case words[0] == "kill", words[0] == "fail":
		l.failing = l.failing || words[0] == "fail"
		l.command(s)
	case words[0] == "restart":
		l.kill()
		l.start()
	case words[0] == "reboot":
		l.reboot(words[1] == "kept")
		for _, p := range l.sandboxes {
			p.ns.Delete()
			l.mustDel(p)
		}
		clear(l.sandboxes)
	case words[0] == "meddle":
		if words[1] == "tables" && l.world != nil {
			l.flushed = true
			l.world.prober.lapse()
		}
		if err := l.meddle(words[1]); err != nil {
			l.t.Fatal(err)
		}
	case words[0] == "turn":
		i := slices.IndexFunc(changes, func(c change) bool { return c.name == words[1] })
		l.world.wanted[words[1]] = words[2] == "on"
		changes[i].to(l.world, words[2] == "on")
	case s == "api away", s == "api back":
		l.memory.setAway(words[1] == "away")
	case s == "api forgets":
		l.memory.forget()
	case s == "settle":
		l.settle(what)
	default:
		l.t.Fatalf("unknown step %q", s)
	}
}

// together makes calls at once, of which each has a pod of its own.
func (l *life) together(steps []step) {
	l.running()
	pods, answers, errs := make([]*pod, len(steps)), make([][]byte, len(steps)), make([]error, len(steps))
	command := func(i int) string { return strings.ToUpper(steps[i][:3]) }
	for i, s := range steps {
		pods[i] = l.pod(strings.Fields(s)[1])
	}
	var all sync.WaitGroup
	for i := range steps {
		all.Go(func() { answers[i], errs[i] = l.call(command(i), pods[i], nil) })
	}
	all.Wait()
	for i, p := range pods {
		switch {
		case command(i) == "DEL" && errs[i] == nil:
			l.forget(p)
		case command(i) == "DEL":
			l.mustDel(p)
		case errs[i] == nil:
			if err := l.added(p, answers[i]); err != nil {
				l.t.Fatal(err)
			}
		}
	}
}

// settle waits until the node is what it was told.
func (l *life) settle(what string) {
	l.command("reset")
	// What an ADD without an answer left is the runtime's to delete. One that failed has left nothing.
	for _, p := range l.sandboxes {
		if l.pods[p.id] == nil && p.owed {
			l.mustDel(p)
		}
	}
	// The first read of a part of the agent ends it if it fails, and is late on a busy machine. Then
	// the kubelet starts it again.
	supervised := func(f func() error) func() error {
		return func() error {
			if l.failing && !l.alive() {
				l.failing = false
				l.start()
			}
			return f()
		}
	}
	defer func() { l.failing = false }()
	if l.world == nil {
		l.eventually(what, supervised(l.settled))
		return
	}
	if l.flushed && !l.failing {
		// The agent knows the policies and its pods of before, whoever is away.
		l.eventually(what+": the policies' table is restored", l.world.enforced)
	}
	l.memory.setAway(false)
	for _, c := range changes {
		if c.name == "Service" && l.flushed { // kube-proxy writes its rules again
			c.to(l.world, l.world.wanted[c.name])
		}
	}
	l.eventually(what, supervised(l.world.all))
	l.flushed = false
	l.world.prober.restored()
	l.world.prober.holds(l.t, what)
}

// ends deletes all pods, and says whether nothing is held then.
func (l *life) ends() bool {
	l.t.try(func() {
		l.running()
		l.settle("at the end")
		for _, p := range l.sandboxes {
			l.mustDel(p)
		}
		clear(l.sandboxes)
		l.nothingHeld()
	})
	return !l.t.failed
}

// fails carries a script out on a node of its own.
func fails(t testing.TB, r *rand.Rand, script []step) bool {
	l := newLife(t, r, needsAPI(script))
	defer l.t.clean()
	return !l.carriesOut(script) || !l.ends()
}

// TestRandomScripts carries out random scripts, on several nodes at once: a node waits for most of the
// time. The script that fails is printed, shortened to the steps that it needs.
func TestRandomScripts(t *testing.T) {
	r := random(t)
	if *script != "" {
		if fails(t, r, readScript(t, *script)) {
			t.Fatal("this script fails")
		}
		return
	}
	run := &run{t: t, began: time.Now(), stop: make(chan os.Signal, 1), count: count{kinds: map[string]int{}}}
	signal.Notify(run.stop, syscall.SIGTERM, syscall.SIGINT)
	defer signal.Stop(run.stop)
	var all sync.WaitGroup
	for range *nodes {
		r := rand.New(rand.NewPCG(r.Uint64(), 0))
		all.Go(func() { run.lives(r) })
	}
	all.Wait()
	t.Logf("%v: %v", time.Since(run.began).Round(time.Second), &run.count)
	*patience = min(*patience, 10*time.Second) // it is there at once, or never
	failsAgain := func(script []step) bool {
		for range 3 { // it may depend on when what happens
			if fails(t, r, script) {
				return true
			}
		}
		return false
	}
	for _, done := range run.failed {
		needed := done
		if last := lastScript(done); failsAgain(last) {
			needed = last
		} else if !fails(t, r, needed) {
			t.Errorf("these steps failed once, and not again:\n%s", strings.Join(needed, "\n"))
			continue
		}
		t.Errorf("this script fails; carry it out with -args -script FILE:\n%s", strings.Join(shorten(needed, func(s []step) bool { return fails(t, r, s) }), "\n"))
	}
}

// run is what the nodes have in common that live at the same time.
type run struct {
	t     testing.TB
	began time.Time
	stop  chan os.Signal

	mu     sync.Mutex // guards all below
	given  int        // steps, to scripts
	said   int        // minutes
	count  count
	failed [][]step // of each life that failed, all its steps
}

// next is of how many steps the next script is; 0: it is enough.
func (r *run) next() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := min(scriptSize, *steps-r.given)
	if *stepsFor > 0 {
		n = scriptSize
	}
	if len(r.stop) > 0 || len(r.failed) > 0 || n <= 0 || *stepsFor > 0 && time.Since(r.began) > *stepsFor {
		return 0
	}
	r.given += n
	return n
}

// passed counts a script.
func (r *run) passed(script []step) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.count.add(script)
	if minute := int(time.Since(r.began).Minutes()); minute > r.said {
		r.said = minute
		r.t.Logf("%v: %v", time.Since(r.began).Round(time.Second), &r.count)
	}
}

// lives has one node follow the other, up to the first that fails.
func (r *run) lives(random *rand.Rand) {
	for n := r.next(); n > 0; {
		api := random.IntN(3) == 0
		l := newLife(r.t, random, api)
		for ; n > 0 && len(l.done) < longest && !l.t.failed; n = r.next() {
			if script := randomScript(random, n, api); l.carriesOut(script) {
				r.passed(script)
			}
		}
		ok := !l.t.failed && l.ends()
		l.t.clean()
		r.mu.Lock()
		r.count.starts, r.count.nodes = r.count.starts+l.starts, r.count.nodes+1
		if !ok {
			r.failed = append(r.failed, l.done)
		}
		r.mu.Unlock()
		if !ok {
			return
		}
	}
}

const (
	scriptSize = 60
	longest    = 20 * (scriptSize + 1) // steps of a life
)

// lastScript is the last of a life's scripts, after the changes that were on when it began.
func lastScript(done []step) []step {
	at := max(0, (len(done)-1)/(scriptSize+1)*(scriptSize+1))
	var on []step
	for _, c := range changes {
		turn := "turn " + c.name + " "
		for _, s := range slices.Backward(done[:at]) {
			if s == turn+"on" {
				on = append(on, s)
			}
			if strings.HasPrefix(s, turn) {
				break
			}
		}
	}
	if on != nil {
		on = append(on, "settle")
	}
	return append(on, done[at:]...)
}

func TestLastScript(t *testing.T) {
	t.Parallel()
	before := slices.Repeat([]step{"gc"}, scriptSize+1)
	before[3], before[7], before[9], before[20] = "turn policy on", "turn claim on", "turn claim off", "turn Service on"
	last := append([]step{"turn policy off"}, before[1:]...)
	want := slices.Concat([]step{"turn policy on", "turn Service on", "settle"}, last)
	if got := lastScript(slices.Concat(before, last)); !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
	if got := lastScript(last); !slices.Equal(got, last) {
		t.Errorf("of one script: %q", got)
	}
}

// count is what was carried out, and ended as it must.
type count struct {
	steps, scripts, nodes, starts int
	kinds                         map[string]int
}

func (c *count) add(script []step) {
	c.scripts++
	c.steps += len(script)
	for _, s := range script {
		kind, _, _ := strings.Cut(s, " ")
		if strings.Contains(s, " & ") {
			kind = "together"
		}
		c.kinds[kind]++
	}
}

func (c *count) String() string {
	var kinds []string
	for _, k := range slices.Sorted(maps.Keys(c.kinds)) {
		kinds = append(kinds, fmt.Sprint(k, " ", c.kinds[k]))
	}
	return fmt.Sprintf("%d steps in %d scripts on %d nodes, %d starts of the agent: %s", c.steps, c.scripts, c.nodes, c.starts, strings.Join(kinds, ", "))
}

// shorten leaves steps out as long as the script still fails.
func shorten(script []step, fails func([]step) bool) []step {
	for size := len(script) / 2; size > 0; size /= 2 {
		for at := 0; at+size <= len(script); {
			shorter := slices.Concat(script[:at], script[at+size:])
			if fails(shorter) {
				script = shorter
			} else {
				at += size
			}
		}
	}
	return script
}

// recorder is a test that may fail without the real one's failing.
type recorder struct {
	testing.TB
	failed   bool
	cleanups []func()
}

func (r *recorder) Helper() {}

// try calls what Fatal ends.
func (r *recorder) try(f func()) {
	defer func() {
		if e := recover(); e != nil && e != (ended{}) {
			panic(e)
		}
	}()
	if !r.failed {
		f()
	}
}

// TempDir is there until clean. It is in memory, as /run is.
func (r *recorder) TempDir() string {
	dir, err := os.MkdirTemp("/dev/shm", "flock-crash-")
	if err != nil {
		r.Fatal(err)
	}
	r.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func (r *recorder) Cleanup(f func()) { r.cleanups = append(r.cleanups, f) }

func (r *recorder) clean() {
	for _, f := range slices.Backward(r.cleanups) {
		f()
	}
}

func (r *recorder) Errorf(format string, args ...any) {
	r.failed = true
	r.TB.Logf("failed: "+format, args...)
}

func (r *recorder) Error(args ...any) { r.failed = true; r.TB.Log(args...) }

func (r *recorder) Fatalf(format string, args ...any) {
	r.Errorf(format, args...)
	panic(ended{})
}

func (r *recorder) Fatal(args ...any) { r.Error(args...); panic(ended{}) }

type ended struct{}

// TestStories carries out scripts of cases that matter: testdata/stories.
func TestStories(t *testing.T) {
	files, err := filepath.Glob("testdata/stories/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			t.Parallel()
			if fails(t, random(t), readScript(t, file)) {
				t.Fail()
			}
		})
	}
}

// readScript reads steps, a line each, between comments.
func readScript(t *testing.T, file string) (script []step) {
	content, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(content)) {
		if line = strings.TrimSpace(line); line != "" && line[0] != '#' {
			script = append(script, line)
		}
	}
	return script
}
