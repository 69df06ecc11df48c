package policy

import (
	"fmt"
	"math/bits"
	"strconv"
)

// A Mark is the bits of the ct mark that are this package's: the generation of the
// policies that judged a connection. 0 is none.
type Mark uint32

// DefaultMark leaves the lowest eight bits to others.
const DefaultMark Mark = 0xffffff00

// ParseMark reads a mark as people write it: 0xffffff00.
func ParseMark(s string) (Mark, error) {
	n, err := strconv.ParseUint(s, 0, 32)
	if err != nil {
		return 0, fmt.Errorf("%q is not a mask of 32 bits, such as 0xffffff00", s)
	}
	return Mark(n), Mark(n).Validate()
}

// Validate says whether the bits can count generations.
func (m Mark) Validate() error {
	n := bits.OnesCount32(uint32(m))
	if n < 8 || bits.Len32(uint32(m))-bits.TrailingZeros32(uint32(m)) != n {
		return fmt.Errorf("ct mark %#x: want 8 or more bits side by side", uint32(m))
	}
	return nil
}
