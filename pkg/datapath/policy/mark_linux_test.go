package policy

import "testing"

// Generations count through all values of their bits but 0, and are read back.
func TestMark(t *testing.T) {
	t.Parallel()
	const m Mark = 0x0ff0
	seen := map[uint32]bool{}
	for generation := range uint32(600) {
		v := m.value(generation)
		if v == 0 || v&^m.generations() != 0 || m.turned()&^uint32(m) != 0 || v == m.value(generation+1) {
			t.Errorf("generation %d has the mark %#x", generation, v)
		}
		if m.value(m.generation(v)) != v {
			t.Errorf("the mark %#x is read as generation %d", v, m.generation(v))
		}
		seen[v] = true
	}
	if len(seen) != 127 { // one bit is not the generation's
		t.Errorf("%d marks, want 127", len(seen))
	}
	for mark, ok := range map[Mark]bool{DefaultMark: true, m: true, 0xff: true, 0: false, 0x7f: false, 0xff00ff00: false} {
		if err := mark.Validate(); (err == nil) != ok {
			t.Errorf("mark %#x: %v", uint32(mark), err)
		}
	}
}
