package pod

import (
	"fmt"
	"testing"
)

func TestWords(t *testing.T) {
	t.Parallel()
	for want, value := range map[string]fmt.Stringer{
		"shop/web-0": Ref{Namespace: "shop", Name: "web-0", UID: "u1"},
		"Unknown":    Readiness(0),
		"NotReady":   NotReady,
		"Ready":      Ready,
	} {
		if got := value.String(); got != want {
			t.Errorf("%#v is %q in words, want %q", value, got, want)
		}
	}
}
