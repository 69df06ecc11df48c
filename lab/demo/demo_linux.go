// Package demo shows in a lab what flock does: pods, sessions and requests from outside,
// live on a terminal, while a pod ends, a policy closes or a node goes. It ends with a line
// of figures, and can record what it showed.
package demo

import (
	"context"
	"errors"
	"fmt"
	"html"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"flock.fritzlab.net/flock/lab/cluster"
	"flock.fritzlab.net/flock/lab/fabric"
	"flock.fritzlab.net/flock/lab/plan"
	"flock.fritzlab.net/flock/lab/process"
)

// Names are the demos.
var Names = []string{"anycast", "policy", "failure", "service"}

// Settings of a demo.
type Settings struct {
	Name string
	// Record is the name of files to write, NAME.cast and NAME.svg; empty: none.
	Record string
	// Listen is an address on the loopback of a page with the same view; empty: none.
	Listen string
	// Terminal says that out is one, on which the view is drawn again and again; else only
	// what happens is printed, a line each.
	Terminal bool
}

// act is something that the demo does, some time after its start.
type act struct {
	after time.Duration
	says  string
	do    func(context.Context) error
}

// scenario is one demo.
type scenario struct {
	title    string
	manifest string // applied before
	address  string // that the outside host asks
	acts     []act
	lasts    time.Duration
	prepare  func(context.Context) error // behind the manifest; may be nil
	restore  func(context.Context) error // what the acts have changed outside of the namespace
	ready    int                         // pods
	result   func(f figures, all []answer) string
}

const (
	namespace = "show"
	interval  = 20 * time.Millisecond
	redraw    = 250 * time.Millisecond
)

// happening is a line of the view: what the demo did.
type happening struct {
	at   time.Duration
	text string
}

// show is a demo that runs.
type show struct {
	lab    *cluster.Lab
	client kubernetes.Interface
	scene  scenario
	flow   flow

	mu        sync.Mutex // guards what follows
	began     time.Time
	sessions  map[string]string // by node
	announced map[string]bool   // by node: the router has a route to the address by it
	pods      []corev1.Pod
	happened  []happening
	frames    []frame
}

// Run runs a demo in a lab that is up.
func Run(ctx context.Context, l *cluster.Lab, want Settings, out io.Writer) (err error) {
	if l.CNI != cluster.Flock || l.Routing != fabric.BGP || l.Families != plan.Dual || l.Nodes < 3 {
		return errors.New("a demo wants a lab as lab up makes it without flags: flock, BGP, both families, 3 nodes")
	}
	client, err := l.Client()
	if err != nil {
		return err
	}
	s := &show{lab: l, client: client, sessions: map[string]string{}, announced: map[string]bool{}}
	if s.scene, err = s.scenario(want.Name); err != nil {
		return err
	}
	fmt.Fprintf(out, "%s: setting up …\n", s.scene.title)
	s.cleanUp(ctx)
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Minute)
		defer cancel()
		if s.scene.restore != nil {
			err = errors.Join(err, s.scene.restore(ctx))
		}
		s.cleanUp(ctx)
	}()
	if err := s.setUp(ctx); err != nil {
		return err
	}
	stop, err := s.ask()
	if err != nil {
		return err
	}
	defer stop()
	if want.Listen != "" {
		listener, err := net.Listen("tcp", want.Listen)
		if err != nil {
			return fmt.Errorf("--listen %s: %w", want.Listen, err)
		}
		server := &http.Server{Handler: http.HandlerFunc(s.servePage), ReadHeaderTimeout: 5 * time.Second}
		defer server.Close()
		go server.Serve(listener)
		fmt.Fprintf(out, "the same view: http://%s/\n", listener.Addr())
	}
	if err := s.play(ctx, want, out); err != nil {
		return err
	}
	stop()
	figures := figuresOf(s.flow.answers())
	text := s.scene.result(figures, s.flow.answers())
	s.say(text)
	s.draw(true)
	if want.Terminal {
		fmt.Fprint(out, s.frames[len(s.frames)-1].ansi())
	}
	fmt.Fprintf(out, "%s: %s; %s\n", want.Name, text, figures)
	if want.Record == "" {
		return nil
	}
	return s.record(want.Record, out)
}

// play does what the demo does, and draws.
func (s *show) play(ctx context.Context, want Settings, out io.Writer) error {
	s.mu.Lock()
	s.began = time.Now()
	s.mu.Unlock()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var watching sync.WaitGroup
	defer watching.Wait()
	defer cancel()
	for _, look := range []func(context.Context){s.lookAtRouter, s.lookAtPods} {
		watching.Go(func() {
			for ctx.Err() == nil {
				look(ctx)
				select {
				case <-time.After(redraw / 2):
				case <-ctx.Done():
				}
			}
		})
	}
	if want.Terminal {
		fmt.Fprint(out, "\x1b[?25l\x1b[2J")
		defer fmt.Fprint(out, "\x1b[?25h\r\n")
	}
	acts := s.scene.acts
	failed := make(chan error, len(acts))
	tick := time.NewTicker(redraw)
	defer tick.Stop()
	for {
		since := time.Since(s.began)
		for len(acts) > 0 && since >= acts[0].after {
			a := acts[0]
			acts = acts[1:]
			s.say(a.says)
			if !want.Terminal {
				fmt.Fprintf(out, "%5.1f s  %s\n", since.Seconds(), a.says)
			}
			watching.Go(func() {
				if err := a.do(ctx); err != nil && ctx.Err() == nil {
					failed <- fmt.Errorf("%s: %w", a.says, err)
				}
			})
		}
		f := s.draw(false)
		if want.Terminal {
			fmt.Fprint(out, f.ansi())
		}
		if since > s.scene.lasts {
			return nil
		}
		select {
		case err := <-failed:
			return err
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-tick.C:
		}
	}
}

func (s *show) say(text string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.happened = append(s.happened, happening{time.Since(s.began), text})
}

// setUp applies the manifest and waits until the address is announced and answers.
func (s *show) setUp(ctx context.Context) error {
	if _, err := s.lab.Kubectl(ctx, s.scene.manifest, "apply", "--filename=-"); err != nil {
		return err
	}
	if s.scene.prepare != nil {
		if err := s.scene.prepare(ctx); err != nil {
			return err
		}
	}
	return process.Await(ctx, "the demo's pods", nil, func(ctx context.Context) error {
		s.lookAtPods(ctx)
		s.lookAtRouter(ctx)
		s.mu.Lock()
		defer s.mu.Unlock()
		ready := 0
		for i := range s.pods {
			if isReady(&s.pods[i]) {
				ready++
			}
		}
		if ready < s.scene.ready {
			return fmt.Errorf("%d of %d pods are Ready: see lab kubectl -n %s describe pods", ready, s.scene.ready, namespace)
		}
		if n := len(s.announced); s.scene.address != "" && n < s.scene.ready {
			return fmt.Errorf("%d of %d nodes announce %s: see lab kubectl get nodeconfigs -o yaml", n, s.scene.ready, s.scene.address)
		}
		return nil
	})
}

func (s *show) cleanUp(ctx context.Context) {
	_, _ = s.lab.Kubectl(ctx, "", "delete", "namespace", namespace, "--ignore-not-found", "--wait=true", "--timeout=90s")
	_, _ = s.lab.Kubectl(ctx, "", "delete", "addresspool", namespace, "--ignore-not-found")
}

// ask has the outside host ask the address until stop is called.
func (s *show) ask() (stop func(), err error) {
	address := s.scene.address
	if address == "" {
		s.mu.Lock()
		address = s.pods[0].Status.PodIPs[0].IP
		s.mu.Unlock()
	}
	echo := filepath.Join(s.lab.Dir.Path("images"), "bin", "echo")
	cmd, err := s.lab.Command(plan.Outside, echo, "get", "-n", "1000000", "-interval", interval.String(), "-timeout", "300ms", "http://"+net.JoinHostPort(address, "8080")+"/")
	if err != nil {
		return nil, err
	}
	lines, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	done := make(chan struct{})
	go func() {
		s.flow.read(lines)
		_ = cmd.Wait()
		close(done)
	}()
	return sync.OnceFunc(func() {
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		<-done
	}), nil
}

// lookAtRouter asks the router for its sessions, and its routes to the address.
func (s *show) lookAtRouter(ctx context.Context) {
	sessions, err := s.lab.Sessions()
	if err == nil {
		up, all := map[string]int{}, map[string]int{}
		for _, x := range sessions {
			node, _, _ := strings.Cut(x.Name, "_")
			all[node]++
			if x.Established() {
				up[node]++
			}
		}
		s.mu.Lock()
		for node, n := range all {
			s.sessions[node] = fmt.Sprintf("%d of %d", up[node], n)
		}
		s.mu.Unlock()
	}
	if s.scene.address == "" {
		return
	}
	cmd, err := s.lab.Command(plan.Tor, "ip", "-6", "route", "show", s.scene.address)
	if err != nil {
		return
	}
	out, err := cmd.Output()
	if err != nil {
		return
	}
	announced := map[string]bool{}
	for _, n := range plan.Nodes(s.lab.Nodes) {
		if strings.Contains(string(out), " "+n.LAN().IPv6.Addr().String()+" ") {
			announced[n.Name()] = true
		}
	}
	s.mu.Lock()
	s.announced = announced
	s.mu.Unlock()
}

func (s *show) lookAtPods(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	list, err := s.client.CoreV1().Pods(namespace).List(ctx, metav1.ListOptions{})
	if err != nil {
		return
	}
	slices.SortFunc(list.Items, func(a, b corev1.Pod) int { return a.CreationTimestamp.Compare(b.CreationTimestamp.Time) })
	s.mu.Lock()
	s.pods = list.Items
	s.mu.Unlock()
}

func isReady(p *corev1.Pod) bool {
	return p.DeletionTimestamp == nil && slices.ContainsFunc(p.Status.Conditions, func(c corev1.PodCondition) bool {
		return c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue
	})
}

// podState is a pod in one word, and how that looks.
func podState(p *corev1.Pod) span {
	switch {
	case p.DeletionTimestamp != nil:
		return span{"ending", warn}
	case isReady(p):
		return span{"Ready", good}
	case p.Status.Phase == corev1.PodRunning:
		return span{"not Ready", bad}
	}
	return span{"starting", warn}
}

// draw is the view as it is now. It is kept for the record.
func (s *show) draw(ends bool) frame {
	all := s.flow.answers()
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	f := frame{at: now.Sub(s.began)}
	add := func(spans ...span) { f.lines = append(f.lines, spans) }
	add(span{"flock  ", bold}, span{s.scene.title, bold}, span{fmt.Sprintf("%*s", max(0, columns-16-len([]rune(s.scene.title))), fmt.Sprintf("%.1f s", f.at.Seconds())), dim})
	add()
	what := "ANNOUNCES"
	if s.scene.address == "" {
		what = ""
	}
	add(span{fmt.Sprintf("%-7s %-9s %-10s %-22s %-10s %s", "NODE", "SESSIONS", what, "POD", "", "ANSWERS, each 250 ms"), dim})
	const width = 28
	for _, n := range plan.Nodes(s.lab.Nodes) {
		sessions := s.sessions[n.Name()]
		up := good
		if before, after, _ := strings.Cut(sessions, " of "); before != after {
			up = bad
		}
		announced := span{fmt.Sprintf("%-10s ", "-"), bad}
		switch {
		case s.scene.address == "":
			announced = span{fmt.Sprintf("%-10s ", ""), plain}
		case s.announced[n.Name()]:
			announced = span{fmt.Sprintf("%-10s ", "yes"), good}
		}
		first := true
		for i := range s.pods {
			p := &s.pods[i]
			if p.Spec.NodeName != n.Name() {
				continue
			}
			state := podState(p)
			state.text = fmt.Sprintf("%-10s ", state.text)
			name := p.Name
			if len(name) > 22 {
				name = name[:22]
			}
			answers := bar(all, now, redraw, width, int(redraw/interval), func(a answer) bool { return a.OK && a.Body.Pod == p.Name })
			if first {
				add(span{fmt.Sprintf("%-7s ", n.Name()), bold}, span{fmt.Sprintf("%-9s ", sessions), up}, announced, span{fmt.Sprintf("%-22s ", name), plain}, state, span{answers, good})
			} else {
				add(span{fmt.Sprintf("%-29s", ""), plain}, span{fmt.Sprintf("%-22s ", name), plain}, state, span{answers, good})
			}
			first = false
		}
		if first {
			add(span{fmt.Sprintf("%-7s ", n.Name()), bold}, span{fmt.Sprintf("%-9s ", sessions), up}, announced, span{"no pod", dim})
		}
	}
	add(span{fmt.Sprintf("%-62s ", "no answer within 300 ms, or refused"), dim}, span{bar(all, now, redraw, width, int(redraw/interval), func(a answer) bool { return !a.OK }), bad})
	add()
	address := s.scene.address
	if address == "" && len(s.pods) > 0 && len(s.pods[0].Status.PodIPs) > 0 {
		address = s.pods[0].Status.PodIPs[0].IP
	}
	figures := figuresOf(all)
	add(span{"outside", bold}, span{" asks ", plain}, span{address, bold}, span{" every 20 ms, over a new connection each time", plain})
	failed := good
	if figures.failed > 0 {
		failed = warn
	}
	add(span{fmt.Sprintf("        %d answered, ", figures.answered), plain}, span{fmt.Sprintf("%d failed", figures.failed), failed}, span{fmt.Sprintf(", p50 %.1f ms", figures.median), plain})
	add()
	// The screen has room for the last ones.
	shown := s.happened[max(0, len(s.happened)-(rows-len(f.lines))):]
	for i, h := range shown {
		look := plain
		if ends && i == len(shown)-1 {
			look = good
		}
		add(span{fmt.Sprintf("%5.1f s  ", h.at.Seconds()), dim}, span{h.text, look})
	}
	s.frames = append(s.frames, f)
	return f
}

// record writes what was shown into files.
func (s *show) record(name string, out io.Writer) error {
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return err
	}
	title := "flock: " + s.scene.title
	for ext, write := range map[string]func(io.Writer) error{
		".cast": func(w io.Writer) error { return writeCast(w, title, s.began, s.frames) },
		".svg":  func(w io.Writer) error { return writeSVG(w, title, thin(s.frames, 500*time.Millisecond)) },
	} {
		f, err := os.Create(name + ext)
		if err != nil {
			return err
		}
		if err := errors.Join(write(f), f.Close()); err != nil {
			return err
		}
		fmt.Fprintln(out, "recorded", name+ext)
	}
	return nil
}

// servePage shows the view to browsers on this machine.
func (s *show) servePage(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	var last frame
	if len(s.frames) > 0 {
		last = s.frames[len(s.frames)-1]
	}
	s.mu.Unlock()
	var picture strings.Builder
	last.at = 0
	if err := writeSVG(&picture, s.scene.title, []frame{last}); err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	fmt.Fprintf(w, "<!DOCTYPE html>\n<html lang=\"en\"><meta charset=\"utf-8\"><meta http-equiv=\"refresh\" content=\"1\"><title>%s</title>\n<body style=\"background:#111\">%s</body></html>\n",
		html.EscapeString(s.scene.title), picture.String())
}
