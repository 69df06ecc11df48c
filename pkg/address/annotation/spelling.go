package annotation

import (
	"strconv"
	"strings"
)

// maxQuoted is how much of a value an error repeats, in bytes. Events and CNI
// errors have little room, and annotations up to 256 KiB.
const maxQuoted = 128

// quote is a value as an error shows it: in quotes, without control characters,
// and not endlessly long.
func quote(s string) string {
	if len(s) > maxQuoted {
		return strconv.Quote(strings.ToValidUTF8(s[:maxQuoted], "")) + "…"
	}
	return strconv.Quote(s)
}

// plain is a key as a warning shows it.
func plain(s string) string {
	q := quote(s)
	return strings.ReplaceAll(q, `"`, "")
}

// suggestion says what may have been meant by name, which is no known key: the key that is the
// fewest typing errors away, or all keys where that is none.
func suggestion(name string) string {
	if len(name) > maxQuoted {
		name = name[:maxQuoted]
	}
	best, least := "", 0
	for _, key := range Keys {
		d := editDistance(strings.ToLower(name), strings.TrimPrefix(key, Prefix))
		if best == "" || d < least {
			best, least = key, d
		}
	}
	if short := strings.TrimPrefix(best, Prefix); 2*least >= max(len(name), len(short)) {
		var all []string
		for _, key := range Keys {
			all = append(all, strings.TrimPrefix(key, Prefix))
		}
		return "the keys after " + Prefix + " are " + strings.Join(all, ", ")
	}
	return "did you mean " + best + "?"
}

// editDistance is the Levenshtein distance of a and b in bytes.
func editDistance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			above := row[j+1]
			if a[i] == b[j] {
				row[j+1] = diagonal
			} else {
				row[j+1] = 1 + min(diagonal, above, row[j])
			}
			diagonal = above
		}
	}
	return row[len(b)]
}
