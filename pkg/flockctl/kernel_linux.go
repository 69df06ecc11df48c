package flockctl

import (
	"fmt"

	"flock.fritzlab.net/flock/pkg/datapath/survey"
	"flock.fritzlab.net/flock/pkg/support"
)

// kernelProblems are what is in flock's way in the kernel of this machine.
func kernelProblems() ([]problem, error) {
	surveyor, err := survey.Open()
	if err != nil {
		return nil, fmt.Errorf("cannot look at this machine's kernel: %w: run flockctl as root", err)
	}
	defer surveyor.Close()
	snapshot, err := surveyor.Read()
	if err != nil {
		return nil, fmt.Errorf("cannot look at this machine's kernel: %w: run flockctl as root", err)
	}
	found := []problem{}
	for _, f := range snapshot.Findings() {
		severity := "risk: "
		if f.Breaks {
			severity = ""
		}
		found = append(found, problem{f.Object, severity + f.Text + "; to remove it: " + f.Remedy})
	}
	lacks, err := support.Kernel()
	if err != nil {
		return nil, fmt.Errorf("cannot look at this machine's kernel: %w: run flockctl as root", err)
	}
	for _, f := range lacks {
		severity := "risk: "
		if f.Breaks {
			severity = ""
		}
		found = append(found, problem{f.Object, severity + without(f)})
	}
	return found, nil
}
