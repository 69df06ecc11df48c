package agent

import (
	"errors"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"flock.fritzlab.net/flock/internal/cell"
	"flock.fritzlab.net/flock/internal/nettest"
	"flock.fritzlab.net/flock/pkg/datapath/kernel"
	"flock.fritzlab.net/flock/pkg/netlink/nft"
	"flock.fritzlab.net/flock/pkg/routing/birdc"
	"flock.fritzlab.net/flock/pkg/support"
)

// Each expression in flock's own tables is one that package support tries.
func TestExpressionsAreTried(t *testing.T) {
	_, ns := composed(t, slog.New(slog.DiscardHandler))
	tried, seen := support.Expressions(), 0
	ns.Run(func() {
		c, err := nft.Dial()
		if err != nil {
			t.Error(err)
			return
		}
		defer c.Close()
		for _, name := range kernel.Tables {
			for _, family := range []nft.Family{nft.Inet, nft.ARP} {
				table := nft.Table{Family: family, Name: name}
				contents, err := c.Contents(table)
				if errors.Is(err, unix.ENOENT) {
					continue
				} else if err != nil {
					t.Error(err)
					return
				}
				for chain := range contents.Chains {
					rules, err := c.Expressions(nft.Chain{Table: table, Name: chain})
					if err != nil {
						t.Error(err)
						return
					}
					for _, rule := range rules {
						for _, e := range rule {
							seen++
							if !slices.Contains(tried, e.Name) {
								t.Errorf("%s has a rule with %q, which package support does not try", table, e.Name)
							}
						}
					}
				}
			}
		}
	})
	if seen < 20 {
		t.Errorf("only %d expressions in flock's tables", seen)
	}
}

// What is missing is in the condition, and in the log once.
func TestSupported(t *testing.T) {
	var mu sync.Mutex
	logged := 0
	log := slog.New(onMessage(func(m string) {
		if strings.Contains(m, "the node lacks a requirement of flock") {
			mu.Lock()
			logged++
			mu.Unlock()
		}
	}))
	all, _ := composed(t, log)
	s := each[*supported](all)[0]
	var daemons cell.Cell[daemon]
	s.daemon = &daemons
	if c := s.Conditions(); c != nil {
		t.Errorf("before the kernel was tried: %+v", c)
	}
	want := func(status metav1.ConditionStatus, reason, text string) {
		t.Helper()
		c := s.Conditions()
		if len(c) != 1 || c[0].Type != "Supported" || c[0].Status != status || c[0].Reason != reason || !strings.Contains(c[0].Message, text) {
			t.Errorf("condition %+v, want %s, %s, %q", c, status, reason, text)
		}
	}
	s.tried.Set(kernelTrial{done: true})
	want(metav1.ConditionTrue, "AllThere", "")
	var bird daemon
	bird.BIRD = birdc.Status{Version: "3.3.2"}
	daemons.Set(bird)
	want(metav1.ConditionTrue, "MissingSome", "BIRD: found BIRD 3.3.2")
	s.server.Set("v1.28.0")
	want(metav1.ConditionFalse, "Missing", "API server: found Kubernetes v1.28.0")

	lacks := support.Finding{Breaks: true, Object: "kernel", Found: "none", Needed: "nf_tables", Without: "nothing", Remedy: "another"}
	s.tried.Set(kernelTrial{})
	failed := false
	s.kernel = func() ([]support.Finding, error) {
		if !failed { // and all is well then, for all that is known
			failed = true
			return nil, unix.EMFILE
		}
		return []support.Finding{lacks, lacks}, nil
	}
	go s.Run(t.Context())
	nettest.Await(t, "what is missing to be logged", func() bool {
		mu.Lock()
		defer mu.Unlock()
		return logged == 3
	})
	want(metav1.ConditionFalse, "Missing", "kernel: found none, needed is nf_tables")
}
