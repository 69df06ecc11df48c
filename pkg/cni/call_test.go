package cni

import "testing"

func TestValidName(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"a", "Z", "0", "a_.-", "9-", "flock", "0123456789abcdef"} {
		if !validName(name) {
			t.Errorf("%q is refused", name)
		}
	}
	for _, name := range []string{"", "_a", ".a", "-a", "a/b", "a b", "a\n", "ä", "a\x00", "..", "a@b"} {
		if validName(name) {
			t.Errorf("%q is taken", name)
		}
	}
}
