package main

import (
	"io"
	"testing"
)

func TestPhasesOfTwoBuilds(t *testing.T) {
	t.Parallel()
	c := command()
	c.SetArgs([]string{"local", "--phases", "--build", "new=bin", "--build", "old=bin"})
	c.SetOut(io.Discard)
	if err := c.Execute(); err == nil || err.Error() != "--phases: want one --build" {
		t.Errorf("got %v", err)
	}
}
