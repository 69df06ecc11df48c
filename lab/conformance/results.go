package conformance

import (
	"encoding/xml"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// results are the names of tests, with their times and the reasons of those that
// skipped themselves.
type results struct{ passed, failed, skipped []string }

// report is JUnit's XML, as ginkgo writes it.
type report struct {
	Cases []struct {
		Name    string  `xml:"name,attr"`
		Status  string  `xml:"status,attr"`
		Seconds float64 `xml:"time,attr"`
		Skipped struct {
			Message string `xml:"message,attr"`
		} `xml:"skipped"`
	} `xml:"testsuite>testcase"`
}

// readResults reads the reports in a directory. Tests that --focus and --skip left
// out are in none of the lists.
func readResults(dir string) (results, error) {
	files, err := filepath.Glob(filepath.Join(dir, "junit*.xml"))
	if err != nil {
		return results{}, err
	}
	if len(files) == 0 {
		return results{}, fmt.Errorf("there is no junit*.xml in %s: the suite did not get as far as to run a test", dir)
	}
	var r results
	for _, file := range files {
		content, err := os.ReadFile(file)
		if err != nil {
			return results{}, err
		}
		var rep report
		if err := xml.Unmarshal(content, &rep); err != nil {
			return results{}, fmt.Errorf("%s: %w", file, err)
		}
		for _, c := range rep.Cases {
			line := fmt.Sprintf("%6.1f s  %s", c.Seconds, c.Name)
			reason, itself := strings.CutPrefix(c.Skipped.Message, "skipped - ")
			switch {
			case c.Status == "skipped" && itself:
				r.skipped = append(r.skipped, line+": "+reason)
			case c.Status == "skipped", c.Status == "pending":
			case c.Status != "passed": // also of the suite's own set-up
				r.failed = append(r.failed, line+" ("+c.Status+")")
			case strings.HasPrefix(c.Name, "[It]"):
				r.passed = append(r.passed, line)
			}
		}
	}
	for _, list := range [][]string{r.passed, r.failed, r.skipped} {
		slices.Sort(list)
	}
	return r, nil
}

func (r results) print(w io.Writer) {
	for _, line := range r.skipped {
		fmt.Fprintln(w, "skipped itself:", line)
	}
	for _, line := range r.failed {
		fmt.Fprintln(w, "failed:", line)
	}
	fmt.Fprintf(w, "%d passed, %d failed\n", len(r.passed), len(r.failed))
}
