package fleet

import (
	"cmp"
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"

	"flock.fritzlab.net/flock/pkg/api/v1alpha1"
)

var noon = time.Date(2026, 1, 2, 12, 0, 0, 0, time.UTC)

// rolloutMember is a node in words, with times in seconds before noon: "updated",
// "turn=GENERATION@SECONDS", "as=STATE" (that of its turn), "began=SECONDS" (of its turn),
// "made=GENERATION" (of the template), "uid=UID" (of the template of the turn, default that of
// today), "from=UID" (of the template of which it was made, likewise), "lag" (its agent has not reported), "CONDITION=False",
// "up=FROM-UNTIL" (seen available; default 60-0, or never if it is not), "before" (with the spec
// before the one that it has), "sessions=N" (up), "had=N"
// (up when it got its turn), "lacked=CONDITIONS" (then), "withdrawn" (its turn), "dead" (nothing is heard of it), "kept=FROM-UNTIL" (seen with what it had at its turn), "changed=SECONDS" (its NodeConfig),
// "changing=SECONDS" (the first time, without being available for long in between), "facts" (its own differ alone),
// "same" or "other" (as or than the template says now, its turn was for; default unknown), "unfit" (the template makes no NodeConfig of it),
// "refused=SECONDS" (and worth another attempt since).
func rolloutMember(t *testing.T, name, words string) Member {
	t.Helper()
	m := Member{Config: &v1alpha1.NodeConfig{ObjectMeta: metav1.ObjectMeta{Name: name, Generation: 7}}}
	m.Config.Labels = map[string]string{v1alpha1.TemplateLabel: "all"}
	m.Config.Annotations = map[string]string{v1alpha1.TemplateUIDAnnotation: "all-1"}
	m.Config.Status.ObservedGeneration = 7
	number := func(s string) int {
		n, err := strconv.Atoi(s)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	ago := func(s string) time.Time { return noon.Add(-time.Duration(number(s)) * time.Second) }
	conditions := map[string]metav1.Condition{"Ready": {Type: "Ready", Status: metav1.ConditionTrue}}
	up, kept, spec := "", "", int64(7)
	for _, w := range strings.Fields(words) {
		key, value, _ := strings.Cut(w, "=")
		switch key {
		case "updated":
			m.Updated = true
		case "same":
			m.Turn.Digest = digest(template(t, "all", everyNode))
		case "other":
			m.Turn.Digest = "0123456789abcdef"
		case "unfit":
			m.Unfit = "it has no label as"
		case "facts":
			m.Facts = true
		case "lag":
			m.Config.Status.ObservedGeneration = 6
		case "turn":
			generation, at, _ := strings.Cut(value, "@")
			m.Turn = &v1alpha1.TemplateTurn{Template: "all", TemplateUID: "all-1", Generation: int64(number(generation)), Time: metav1.NewTime(ago(at)), NodeState: v1alpha1.NodeAvailable}
		case "as":
			m.Turn.NodeState = v1alpha1.NodeState(value)
		case "of":
			m.Turn.Template, m.Turn.TemplateUID = value, types.UID(value+"-1")
		case "uid":
			m.Turn.TemplateUID = types.UID(value)
		case "from":
			m.Config.Annotations[v1alpha1.TemplateUIDAnnotation] = value
		case "had":
			m.Turn.SessionsUp = int32(number(value))
		case "sessions":
			m.Config.Status.Sessions = append(make([]v1alpha1.SessionStatus, 1), slices.Repeat([]v1alpha1.SessionStatus{{Up: true}}, number(value))...)
		case "began":
			m.Began = ago(value)
		case "changed":
			m.Changes.Last = ago(value)
			m.Changes.First = cmp.Or(m.Changes.First, m.Changes.Last)
		case "changing":
			m.Changes.First = ago(value)
		case "made":
			m.Config.Annotations[v1alpha1.TemplateGenerationAnnotation] = value
		case "lacked":
			m.Turn.NotTrue = strings.Split(value, ",")
		case "dead":
			m.Dead = true
		case "withdrawn":
			m.Turn.Withdrawn = true
		case "before":
			spec = 6
		case "refused":
			m.Refused, m.Retry = "the webhook says no", ago(value)
		case "kept":
			kept = value
		case "up":
			up = value
		default:
			conditions[key] = metav1.Condition{Type: key, Status: metav1.ConditionStatus(value), Message: "why"}
		}
	}
	m.Config.Status.TemplateTurn = m.Turn
	for _, c := range conditions {
		m.Config.Status.Conditions = append(m.Config.Status.Conditions, c)
	}
	available := m.Available(template(t, "all", everyNode))
	if up == "" && available {
		up = "60-0"
	}
	if from, until, ok := strings.Cut(kept, "-"); ok {
		m.Kept.See(true, spec, ago(from))
		m.Kept.See(!m.Worse(template(t, "all", everyNode)), 7, ago(until))
	}
	if from, until, ok := strings.Cut(up, "-"); ok {
		m.Seen.See(true, spec, ago(from))
		m.Seen.See(available, 7, ago(until))
	}
	return m
}

func TestNextWave(t *testing.T) {
	const progressing, stopped, complete = RolloutProgressing, RolloutStopped, RolloutComplete
	for _, tc := range []struct {
		name     string
		max      string // maxUnavailable; default 2
		stopped  int64  // the generation of which the status says so
		failed   string // nodes that have stopped it
		complete int    // when the template was last, in seconds before noon; 0: never
		members  []string
		next     string // NODE, or NODE/STATE if that is not Available, or NODE/withdrawn
		reason   RolloutReason
		message  string
		again    time.Duration
		fails    string // what the status gets of failed nodes, "none"; not looked at if empty
	}{
		{name: "one node first", members: []string{"", "", "", ""}, next: "n0", reason: progressing, message: "generation 3: 0 of 4 nodes are updated, and it is the turn of 1 more", again: -1},
		{name: "nothing to do", members: []string{"updated", "updated"}, reason: complete, message: "2 of 2", again: -1},
		{name: "no nodes", reason: complete, message: "0 of 0", again: -1},
		{name: "the first has not followed", members: []string{"turn=3@5", "", ""}, reason: progressing, message: "1 of the last wave must become available", again: 115 * time.Second},
		{name: "its agent has not reported", members: []string{"updated turn=3@5 lag", "", ""}, reason: progressing, message: "must become available", again: 115 * time.Second},
		{name: "not available for long enough", members: []string{"updated turn=3@5 up=4-0", "", ""}, reason: progressing, again: 6 * time.Second},
		{name: "the second wave", members: []string{"updated turn=3@20", "", "", ""}, next: "n1 n2", reason: progressing, again: -1},
		{name: "a percentage is rounded up", max: "34%", members: []string{"updated turn=3@20", "", "", ""}, next: "n1 n2", reason: progressing, again: -1},
		{name: "a small percentage", max: "1%", members: []string{"updated turn=3@20", "", "", ""}, next: "n1", reason: progressing, again: -1},
		{name: "all at once, without turns", max: "100%", members: []string{"", "Ready=False", "", "updated"}, reason: progressing, message: "1 of 4 nodes are updated, and the others need no turn", again: -1},
		{name: "a wave waits for all", members: []string{"updated turn=3@30", "updated turn=3@15", "updated turn=3@15 Ready=False", ""}, reason: progressing, again: 105 * time.Second},
		{name: "a wave fails", members: []string{"updated turn=3@230", "updated turn=3@121", "updated turn=3@121 SessionsUp=False", ""}, reason: stopped,
			message: "1 of the last wave are not available 2m0s after it began: n2: SessionsUp is False: why: fix the template, or set it back to what it was, and these nodes follow first; or repair the nodes, and the next wave begins; or take a node out of the template: kubectl label nodeconfig NODE flock.fritzlab.net/template-", again: -1},
		{name: "the last wave fails", members: []string{"updated turn=3@230", "updated turn=3@121 SessionsUp=False"}, reason: stopped, again: -1},
		{name: "refused by its agent", members: []string{"updated turn=3@121 Accepted=False", ""}, reason: stopped, message: "n0: Accepted is False: why", again: -1},
		{name: "BIRD refuses it", members: []string{"updated turn=3@121 RoutingConfigured=False", ""}, reason: stopped, message: "n0: RoutingConfigured is False: why", again: -1},
		{name: "an agent that does not follow", members: []string{"turn=3@121", "updated"}, reason: stopped, message: "n0 has not followed: see the log of its agent", again: -1},
		{name: "an agent that does not follow, and fails later", members: []string{"turn=3@900 Ready=False up=900-5", "updated"}, reason: stopped, message: "n0 has not followed", again: -1},
		{name: "an agent that does not report", members: []string{"updated turn=3@121 lag", ""}, reason: stopped, message: "n0: Ready is Unknown: its agent has not reported about generation 7", again: -1},
		{name: "many fail", members: []string{"updated turn=3@121 lag", "updated turn=3@121 lag", "updated turn=3@121 lag", "updated turn=3@121 lag", "updated turn=3@121 lag"}, reason: stopped, message: "; and 2 more", again: -1},
		{name: "the failed wave is repaired", members: []string{"updated turn=3@600", "updated turn=3@500 up=11-0", ""}, next: "n2", reason: progressing, again: -1},
		{name: "back after the deadline, not for long", members: []string{"updated turn=3@500 up=3-0", ""}, reason: progressing, again: 7 * time.Second},
		{name: "another instance of the controller asks for it anew", members: []string{"updated turn=3@500 up=0-0", ""}, reason: progressing, again: 10 * time.Second},
		{name: "a turn of a template before it with its name is none", members: []string{"turn=3@20 uid=all-0", "turn=4@20 uid=all-0", ""}, next: "n0", reason: progressing, again: -1},
		{name: "nor does it excuse", complete: 10, members: []string{"turn=3@20 uid=all-0 Ready=False", ""}, next: "n0/Broken", reason: progressing, again: -1},
		{name: "a generation of a template before it was ignored, nothing is known of this one", members: []string{"turn=3@121 uid=all-0 made=2", ""}, next: "n0", reason: progressing, again: -1},
		{name: "a generation of this one was ignored", members: []string{"turn=2@121 from=all-0 made=5", ""}, next: "n1", reason: progressing, again: -1},
		{name: "a turn of another template is none", members: []string{"turn=3@20 of=other", ""}, next: "n0", reason: progressing, again: -1},

		// The remedy.
		{name: "the remedy begins where it broke", members: []string{"", "turn=2@50 Ready=False", "turn=2@50 Ready=False"}, next: "n1/Broken", reason: progressing, again: -1},
		{name: "the others that it broke in waves", members: []string{"updated turn=3@20 as=Broken", "turn=2@50 Ready=False", "", "turn=2@50 Ready=False", "turn=2@121 lag"}, next: "n1/Broken n3/Broken", reason: progressing, again: -1},
		{name: "and without those that it did not", members: []string{"updated turn=3@20 as=Broken", "", "turn=2@121 lag"}, next: "n2/Broken", reason: progressing, again: -1},
		{name: "all that it broke and all others, if that is meant", max: "100%", members: []string{"turn=2@50 Ready=False", "", "turn=2@50 Ready=False"}, reason: progressing, again: -1},
		{name: "an agent that does not report after its turn", members: []string{"", "turn=2@121 lag"}, next: "n1/Broken", reason: progressing, again: -1},
		{name: "one that may do so yet", members: []string{"turn=2@119 lag", ""}, next: "n1", reason: progressing, again: -1},
		{name: "one whose turn was of another template", members: []string{"turn=2@500 of=other lag", ""}, next: "n1", reason: progressing, again: -1},
		{name: "or of one before it with its name", members: []string{"turn=2@500 uid=all-0 lag", ""}, next: "n1", reason: progressing, again: -1},
		{name: "a whole fleet that is about to report", members: []string{"turn=2@5 lag", "turn=2@5 lag", "turn=2@5 lag"}, next: "n0/Unavailable", reason: progressing, again: -1},
		{name: "the second remedy too", members: []string{"", "turn=2@50 as=Broken Ready=False"}, next: "n1/Broken", reason: progressing, again: -1},
		{name: "whatever their clocks say", members: []string{"", "turn=2@-3600 Ready=False"}, next: "n1/Broken", reason: progressing, again: -1},
		{name: "what another template broke", complete: 10, members: []string{"", "turn=3@20 of=other Ready=False"}, next: "n1/Broken", reason: progressing, again: -1},
		{name: "what was not available at an earlier turn either", members: []string{"turn=2@50 as=Unavailable Ready=False", ""}, next: "n1", reason: progressing, again: -1},
		{name: "one that was not available and lost its last session", members: []string{"", "turn=2@121 as=Unavailable lacked=SessionsUp had=1 sessions=0 SessionsUp=False", "Ready=False"}, next: "n1/Broken", reason: progressing, again: -1},
		{name: "but not if it did not follow", members: []string{"", "turn=2@121 as=Unavailable lacked=SessionsUp had=1 sessions=0 SessionsUp=False made=1"}, next: "n0", reason: progressing, again: -1},
		{name: "nor if it keeps it", members: []string{"", "turn=2@121 as=Unavailable lacked=SessionsUp had=2 sessions=1 SessionsUp=False"}, next: "n0", reason: progressing, again: -1},
		{name: "one that the remedy does not help", members: []string{"updated turn=3@20 as=Broken Ready=False", "updated turn=3@20 as=Broken", ""}, next: "n2", reason: progressing, again: -1},
		{name: "one that the remedy has just helped", members: []string{"updated turn=3@20 as=Broken up=2-0", ""}, reason: progressing, again: 8 * time.Second},
		{name: "one that the remedy helps late", members: []string{"updated turn=3@121 as=Broken up=2-0", ""}, reason: progressing, again: 8 * time.Second},
		{name: "the remedy has its time", members: []string{"updated turn=3@20 as=Broken Ready=False", ""}, reason: progressing, message: "1 of the last wave must", again: 100 * time.Second},
		{name: "one that nothing repairs", members: []string{"updated turn=3@120 as=Broken Ready=False", "", ""}, next: "n1", reason: progressing, message: "it is the turn of 1 more; it has not made available what was not before: n0: Ready is False: why", again: -1},
		{name: "one that nothing repairs, among others that are broken", members: []string{"updated turn=3@120 as=Broken Ready=False", "turn=2@500 Ready=False", ""}, next: "n2", reason: progressing, again: -1},
		{name: "and nobody is available", members: []string{"updated turn=3@120 as=Broken Ready=False", "turn=2@500 Ready=False", "Ready=False"}, next: "n1/Broken", reason: progressing, again: -1},
		{name: "until another has proven the remedy", members: []string{"updated turn=3@120 as=Broken Ready=False", "turn=2@500 Ready=False", "updated turn=3@20", ""}, next: "n1/Broken", reason: progressing, again: -1},
		{name: "it has the stable time all the same", members: []string{"updated turn=3@4 as=Broken Ready=False", "updated turn=3@20", ""}, reason: progressing, message: "1 of the last wave must", again: 6 * time.Second},
		{name: "and until the deadline to follow", members: []string{"turn=3@20 as=Broken made=2 Ready=False", "updated turn=3@20", ""}, reason: progressing, message: "1 of the last wave must", again: 100 * time.Second},
		{name: "one that nothing repairs and that does not follow", members: []string{"turn=3@120 as=Broken Ready=False", "", ""}, next: "n0/withdrawn", reason: stopped, message: "n0 has not followed", again: -1},
		{name: "nor is there another", members: []string{"turn=3@120 as=Broken Ready=False", "updated"}, reason: stopped, message: "1 of 2 nodes are updated, and it waits for 1 nodes whose agents do not answer; n0 has not followed", again: -1},
		{name: "one that nothing repairs, and nobody else", members: []string{"updated turn=3@120 as=Broken Ready=False", "updated"}, reason: complete, message: "2 of 2", again: -1},
		{name: "the next that tries is broken by it", members: []string{"updated turn=3@240 as=Broken Ready=False", "updated turn=3@120 Ready=False", ""}, reason: stopped, message: "1 of the last wave are not available 2m0s after it began: n1", again: -1},
		{name: "one that has not followed an older turn comes last", members: []string{"turn=2@121 made=1", ""}, next: "n1", reason: progressing, again: -1},
		{name: "also if nothing is known of it", members: []string{"turn=2@121 made=1 lag", ""}, next: "n1", reason: progressing, again: -1},
		{name: "unless it had no time to", members: []string{"turn=2@20 made=1", ""}, next: "n0", reason: progressing, again: -1},
		{name: "and no wave waits for it, but the end does", members: []string{"turn=3@121 as=Unavailable made=1", "updated turn=3@500"}, reason: progressing, message: "1 of 2", again: -1},

		// What does not follow.
		{name: "its turn ends if there is another", members: []string{"turn=3@120", "", ""}, next: "n0/withdrawn", reason: stopped, message: "1 of the last wave are not available 2m0s after it began: n0 has not followed", again: -1},
		{name: "not before the deadline", members: []string{"turn=3@119", "", ""}, reason: progressing, message: "1 of the last wave must", again: time.Second},
		{name: "nor before it was looked at for the stable time", members: []string{"turn=3@500 began=2", "", ""}, reason: progressing, again: 8 * time.Second},
		{name: "nor if there had been a stop", stopped: 3, members: []string{"turn=3@500 began=2", "", ""}, reason: stopped, again: 8 * time.Second},
		{name: "another tries it", members: []string{"turn=3@121 withdrawn", "", ""}, next: "n1", reason: stopped, message: "0 of 3 nodes are updated, and it is the turn of 1 more; n0 has not followed: see the log of its agent", again: -1},
		{name: "and is waited for", members: []string{"turn=3@121 withdrawn", "updated turn=3@5 up=4-0", ""}, reason: stopped, message: "1 of the last wave must become available; n0 has not followed", again: 6 * time.Second},
		{name: "and proves it", members: []string{"turn=3@121 withdrawn", "updated turn=3@20", ""}, next: "n2", reason: progressing, message: "it is the turn of 1 more; n0 has not followed", again: -1},
		{name: "it gets another turn then, last", members: []string{"turn=3@300 withdrawn", "updated turn=3@20"}, next: "n0", reason: progressing, again: -1},
		{name: "which ends too while others wait", members: []string{"turn=3@121", "updated turn=3@20", ""}, next: "n0/withdrawn", reason: progressing, message: "n0 has not followed", again: -1},
		{name: "and no longer", members: []string{"turn=3@121", "updated turn=3@20"}, reason: progressing, message: "1 of 2 nodes are updated, and it waits for 1 nodes whose agents do not answer; n0 has not followed", again: -1},
		{name: "as many as a wave has", members: []string{"turn=3@121", "turn=3@121", "turn=3@121 withdrawn", "updated turn=3@20"}, next: "n1/withdrawn n0/withdrawn", reason: progressing, again: -1},
		{name: "then as many others", members: []string{"turn=3@300 withdrawn", "turn=3@400 withdrawn", "turn=3@500 withdrawn", "turn=3@600 withdrawn", "updated turn=3@20"}, next: "n3 n2", reason: progressing, again: -1},
		{name: "nor does one that died before", members: []string{"turn=3@121 made=2 dead", "", ""}, next: "n0/withdrawn", reason: progressing, message: "1 of the last wave must", again: -1, fails: "none"},
		{name: "and none that is dead", members: []string{"turn=3@121 dead", "updated turn=3@20"}, next: "n0/withdrawn", reason: progressing, again: -1},
		{name: "whatever clock made the turn", members: []string{"turn=3@-3600 began=500 withdrawn", "turn=3@300 withdrawn", "updated turn=3@20"}, max: "1", next: "n0", reason: progressing, again: -1},
		{name: "all of them in turn", members: []string{"turn=3@300 withdrawn", "turn=3@500 withdrawn", "turn=3@400 withdrawn"}, next: "n1", reason: stopped, again: -1},
		{name: "and it breaks when it follows late", members: []string{"updated turn=3@500 up=9-2 Ready=False", "updated turn=3@20", ""}, reason: stopped, message: "n0: Ready is False", again: -1},
		{name: "without waves all keep theirs", max: "100%", members: []string{"turn=3@121", ""}, reason: stopped, message: "n0 has not followed", again: -1},
		{name: "its fault is not that turn's", members: []string{"turn=2@20 made=1 Ready=False", ""}, next: "n1", reason: progressing, again: -1},
		{name: "unless it had it before", members: []string{"turn=2@20 as=Broken made=1 Ready=False", ""}, next: "n0/Broken", reason: progressing, again: -1},

		// What other things than the change have broken.
		{name: "what was not available before comes last", members: []string{"Ready=False", "", ""}, next: "n1", reason: progressing, again: -1},
		{name: "and in a wave of its own", members: []string{"Ready=False", "updated turn=3@20", ""}, next: "n2", reason: progressing, again: -1},
		{name: "and no wave waits for it", members: []string{"updated turn=3@20 as=Unavailable Ready=False", "updated turn=3@20", "", "Ready=False"}, next: "n2", reason: progressing, again: -1},
		{name: "broken long after an earlier turn", members: []string{"turn=2@5000 Ready=False up=4990-40", ""}, next: "n1", reason: progressing, again: -1},
		{name: "broken since a change that was complete", complete: 4000, members: []string{"turn=2@5000 Ready=False", ""}, next: "n1", reason: progressing, again: -1},
		{name: "broken long after its turn", members: []string{"updated turn=3@500 Ready=False up=490-5", "updated turn=3@20", ""}, next: "n2", reason: progressing, again: -1},
		{name: "broken soon after it was found available", members: []string{"updated turn=3@500 Ready=False up=490-400", "updated turn=3@20", ""}, reason: stopped, message: "n0", again: -1},
		{name: "up for a moment after the deadline", members: []string{"updated turn=3@500 Ready=False up=9-1", ""}, reason: stopped, message: "n0", again: -1},
		{name: "available until it followed, late", members: []string{"updated turn=3@500 Ready=False up=490-5 before", "updated turn=3@20", ""}, reason: stopped, message: "n0", again: -1},
		{name: "all were broken before", members: []string{"Ready=False", "Ready=False", "Ready=False"}, next: "n0/Unavailable", reason: progressing, again: -1},
		{name: "and the first remains so", members: []string{"updated turn=3@121 as=Unavailable Ready=False", "Ready=False"}, next: "n1/Unavailable", reason: progressing, message: "it has not made available what was not before: n0: Ready is False", again: -1},
		{name: "and the second too", members: []string{"updated turn=3@300 as=Unavailable Ready=False", "updated turn=3@121 as=Unavailable Ready=False", "Ready=False", "turn=2@500 Ready=False"}, reason: stopped, message: "those that are left are not available either, and wait: repair one of the nodes, or fix the template, or set spec.updateStrategy.rollingUpdate.maxUnavailable to 100%; it has not made available what was not before: n0: Ready is False: why; n1", again: -1},
		{name: "and one that is available tries", members: []string{"updated turn=3@300 as=Unavailable Ready=False", "updated turn=3@121 as=Unavailable Ready=False", "Ready=False", ""}, next: "n3", reason: stopped, message: "it is the turn of 1 more", again: -1},
		{name: "and the third tries", members: []string{"updated turn=3@300 as=Unavailable Ready=False", "updated turn=3@150 as=Unavailable Ready=False", "updated turn=3@5 as=Unavailable Ready=False", "Ready=False"}, reason: stopped, message: "1 of the last wave must become available; it has not made available what was not before: n0", again: 115 * time.Second},
		{name: "the API server does not take the turn", members: []string{"refused=1", "", ""}, next: "n1", reason: progressing, again: -1},
		{name: "nor that of the last", members: []string{"refused=0", "updated turn=3@20"}, next: "n0", reason: stopped, message: "1 of 2 nodes are updated; stopped, as the API server does not take turns, which is tried again: n0: the webhook says no", again: -1},
		{name: "which is tried later", members: []string{"refused=-5", "refused=-3", "updated turn=3@20"}, reason: stopped, again: 3 * time.Second},
		{name: "those first that were tried longest ago", members: []string{"refused=1", "refused=9", "refused=5", "refused=-3", "updated turn=3@20"}, next: "n1 n2", reason: stopped, again: 3 * time.Second},
		{name: "nor any of the first", members: []string{"refused=1", "refused=1", "refused=1", ""}, next: "n3", reason: stopped, message: "as the API server does not take turns", again: -1},
		{name: "but those of others", members: []string{"refused=1", "refused=1", "", ""}, next: "n2", reason: progressing, again: -1},
		{name: "and one that does not follow, which was tried before", members: []string{"refused=5", "turn=3@121 withdrawn"}, next: "n1", reason: stopped, again: -1},
		{name: "or after it", members: []string{"refused=125", "turn=3@121 withdrawn"}, next: "n0", reason: stopped, again: -1},
		{name: "and it took one", members: []string{"refused=1", "refused=1", "refused=1", "", "updated turn=3@20"}, next: "n3", reason: progressing, again: -1},

		// When all have followed.
		{name: "broken after all was done", complete: 4000, members: []string{"updated turn=3@5000 Ready=False", "updated turn=3@4000 Ready=False"}, reason: complete, message: "2 of 2", again: -1},
		{name: "its own facts change", complete: 4000, members: []string{"turn=3@5000 made=3", "updated"}, reason: progressing, message: "1 of 2 nodes are updated, and it waits for 1 nodes whose agents do not answer: n0 has not taken over what has changed of its Node", again: -1},
		{name: "its own facts change in its turn", members: []string{"turn=3@20 made=3", "updated"}, reason: progressing, message: "1 of 2 nodes are updated, and it waits for 1 nodes whose agents do not answer: n0 has not taken over", again: -1},
		{name: "it follows what was complete no more", complete: 4000, members: []string{"turn=3@5000", "turn=3@5000", "updated turn=3@5000"}, next: "n0", reason: progressing, message: "1 of 3", again: -1},
		{name: "its own facts change before", members: []string{"turn=3@5000 made=3", "updated turn=3@20", ""}, next: "n2", reason: progressing, again: -1},
		{name: "and it applies them", members: []string{"updated turn=3@5000 made=3 up=2-0", "updated turn=3@20", ""}, reason: progressing, again: 8 * time.Second},
		{name: "a node is moved to the template later", complete: 4000, members: []string{"updated turn=3@5000", "", ""}, next: "n1", reason: progressing, again: -1},
		{name: "and breaks", complete: 4000, members: []string{"updated turn=3@5000", "updated turn=3@130 Ready=False", ""}, reason: stopped, message: "n1", again: -1},

		// Clocks.
		{name: "a turn of the future", members: []string{"updated turn=3@-3600 began=121 Ready=False", ""}, reason: stopped, message: "n0", again: -1},
		{name: "a turn of the future, and it is well", members: []string{"updated turn=3@-3600 began=20", ""}, next: "n1", reason: progressing, again: -1},

		// Another instance of the controller.
		{name: "it looks for the stable time first", members: []string{"updated turn=3@121 began=2 Ready=False", ""}, reason: progressing, message: "1 of the last wave must", again: 8 * time.Second},
		{name: "and has done so", members: []string{"updated turn=3@121 began=10 Ready=False", ""}, reason: stopped, message: "n0", again: -1},
		{name: "though the deadline is not over", members: []string{"updated turn=3@115 began=2 Ready=False", ""}, reason: progressing, again: 8 * time.Second},
		{name: "the one before had stopped", stopped: 3, members: []string{"updated turn=3@121 began=2 Ready=False", ""}, reason: stopped, message: "n0", again: 8 * time.Second},
		{name: "with another generation", stopped: 2, members: []string{"updated turn=3@121 began=2 Ready=False", ""}, reason: progressing, again: 8 * time.Second},
		{name: "and the node is repaired", stopped: 3, failed: "n0", members: []string{"updated turn=3@121 began=2 up=2-0", ""}, reason: stopped, message: "n0 has not been available for 10s", again: 8 * time.Second},
		{name: "and the deadline is not over", stopped: 3, members: []string{"updated turn=3@115 began=2 Ready=False", ""}, reason: progressing, again: 8 * time.Second},
		{name: "it cannot say yet that nothing was proven", members: []string{"updated turn=3@500 as=Broken began=2 Ready=False", ""}, reason: progressing, message: "1 of the last wave must", again: 8 * time.Second},
		{name: "and what is well has not failed", stopped: 3, failed: "n12", members: []string{"updated turn=3@500 began=0 changed=0 up=0-0", "updated turn=3@500 began=0 changed=0 up=0-0", "updated turn=3@500 began=0 changed=0 up=0-0", "updated turn=3@500 began=0 changed=0 up=0-0", "updated turn=3@500 began=0 changed=0 up=0-0", "updated turn=3@500 began=0 changed=0 up=0-0", "updated turn=3@500 began=0 changed=0 up=0-0", "updated turn=3@500 began=0 changed=0 up=0-0", "updated turn=3@500 began=0 changed=0 up=0-0", "updated turn=3@500 began=0 changed=0 up=0-0", "updated turn=3@500 began=0 changed=0 up=0-0", "updated turn=3@500 began=0 changed=0 up=0-0", "updated turn=3@300 began=0 changed=0 Ready=False", "", ""}, reason: stopped, message: "1 of the last wave are not available 2m0s after it began: n12: Ready is False: why: fix", again: 10 * time.Second, fails: "n12"},
		{name: "nor does it stand in for what is gone", stopped: 3, failed: "n99", members: []string{"updated turn=3@500 began=0 changed=0 up=0-0", "updated turn=3@500 began=0 changed=0 up=0-0", "updated turn=3@500 began=0 changed=0 up=0-0", "updated turn=3@500 began=0 changed=0 up=0-0", "updated turn=3@500 began=0 changed=0 up=0-0", "updated turn=3@500 began=0 changed=0 up=0-0", "updated turn=3@500 began=0 changed=0 up=0-0", "updated turn=3@500 began=0 changed=0 up=0-0", "updated turn=3@500 began=0 changed=0 up=0-0", "updated turn=3@500 began=0 changed=0 up=0-0", "updated turn=3@500 began=0 changed=0 up=0-0", "updated turn=3@500 began=0 changed=0 up=0-0", "", ""}, reason: stopped, message: "1 of the last wave are not available 2m0s after it began: n99 is gone", again: 10 * time.Second, fails: "n99"},
		{name: "nor has what the change does not help", stopped: 3, members: []string{"updated turn=3@900 as=Unavailable lacked=Ready Ready=False began=0 changed=0", "updated turn=3@700 as=Unavailable lacked=Ready Ready=False began=0 changed=0", "Ready=False"}, reason: progressing, message: "2 of the last wave must", again: 10 * time.Second, fails: "none"},
		{name: "nor has what follows well beside one that does not", stopped: 3, members: []string{"turn=3@900 withdrawn made=2", "updated turn=3@500 began=0 changed=0 up=0-0", ""}, reason: stopped, message: "1 of the last wave must become available: n1 has not been available for 10s; n0 has not followed", again: 10 * time.Second, fails: "none"},
		{name: "its turn is of the future, and it has failed", stopped: 3, failed: "n0", members: []string{"updated turn=3@-3600 began=2 Ready=False", ""}, reason: stopped, message: "n0", again: 120*time.Second - 2*time.Second, fails: "n0"},
		{name: "those that are known come first", stopped: 3, failed: "n9 n99", members: slices.Repeat([]string{"updated turn=3@300 Ready=False"}, 12), reason: stopped, message: "13 of the last wave", again: -1, fails: "n0 n1 n10 n11 n2 n3 n4 n5 n9 n99"},

		// Other fields of the template change.
		{name: "it stays stopped", stopped: 2, members: []string{"updated turn=2@121 Ready=False", "", ""}, reason: stopped, message: "n0: Ready is False: why", again: -1},
		{name: "where a node has lost its sessions", stopped: 2, members: []string{"updated turn=2@121 had=2 sessions=0", "", ""}, reason: stopped, message: "n0: SessionsUp is Unknown: the node had 2 sessions", again: -1},
		{name: "or one that was not available has", stopped: 2, members: []string{"updated turn=2@121 as=Unavailable lacked=SessionsUp had=1 sessions=0 SessionsUp=False", "", ""}, reason: stopped, message: "n0", again: -1},
		{name: "not where one remains as it was", stopped: 2, members: []string{"updated turn=2@121 as=Unavailable lacked=SessionsUp had=1 sessions=1 SessionsUp=False", "", ""}, next: "n1", reason: progressing, again: -1},
		{name: "it waits for a node that has just followed", members: []string{"updated turn=2@20 Ready=False", "", ""}, reason: progressing, message: "1 of the last wave must", again: 100 * time.Second},
		{name: "it goes on where it has not stopped", members: []string{"updated turn=2@121", "", ""}, next: "n1", reason: progressing, again: -1},
		{name: "not if the roll-out of that generation was complete", complete: 100, members: []string{"updated turn=2@121 Ready=False", "", ""}, next: "n1", reason: progressing, again: -1},
		{name: "nor if the node broke later", members: []string{"updated turn=2@500 Ready=False up=490-5", "", ""}, next: "n1", reason: progressing, again: -1},
		{name: "nor without waves", max: "100%", stopped: 2, failed: "n0", members: []string{"updated turn=2@500 Ready=False", "updated"}, reason: complete, message: "2 of 2", again: -1, fails: "none"},
		{name: "nor if it has not followed, before the template was set back", members: []string{"updated made=1 turn=2@500 dead Ready=Unknown", "made=2 turn=2@500 Ready=False", "updated made=3 turn=1@900", "made=2 turn=2@500 Ready=False"}, next: "n1/Broken", reason: progressing, again: -1, fails: "none"},
		{name: "also if its agent works, and a session is lost by itself", members: []string{"updated made=3 turn=2@60 other SessionsUp=False", "made=2 turn=2@60 other Ready=False", "updated made=3 turn=1@900 same"}, next: "n1/Broken", reason: progressing, again: -1, fails: "none"},
		{name: "and its own facts change", members: []string{"made=3 turn=2@60 other SessionsUp=False", "made=2 turn=2@60 other Ready=False", "updated made=3 turn=1@900 same"}, next: "n1/Broken", reason: progressing, again: -1, fails: "none"},
		{name: "but if it has followed", stopped: 2, members: []string{"updated made=1 turn=2@121 same SessionsUp=False", "updated made=3", ""}, reason: stopped, message: "n0: SessionsUp is False", again: -1, fails: "n0"},

		// The own facts of a node that a change has broken change.
		{name: "that does not repair it", stopped: 3, failed: "n0", members: []string{"made=3 turn=3@500 Ready=False", ""}, reason: stopped, message: "n0: Ready is False: why", again: -1, fails: "n0"},
		{name: "nor with other fields of the template", stopped: 3, failed: "n0", members: []string{"made=3 turn=2@500 Ready=False", ""}, reason: stopped, message: "n0: Ready is False: why", again: -1, fails: "n0"},
		{name: "nor before flock-controller looks", stopped: 2, failed: "n0", members: []string{"made=3 turn=2@500 Ready=False", ""}, reason: stopped, message: "n0: Ready is False: why", again: -1, fails: "n0"},
		{name: "nor where its agent does nothing", stopped: 2, failed: "n0", members: []string{"facts made=2 turn=2@500 Ready=False", ""}, reason: stopped, message: "n0: Ready is False: why", again: -1, fails: "n0"},
		{name: "nor if it is more than its facts", stopped: 3, failed: "n0", members: []string{"made=2 turn=2@500 Ready=False", ""}, reason: stopped, message: "n0 has not followed", again: -1, fails: "n0"},
		{name: "it was repaired before", stopped: 3, failed: "n0", members: []string{"made=2 turn=2@500", ""}, next: "n0", reason: progressing, again: -1, fails: "none"},
		{name: "it is well, as it has been", members: []string{"facts made=2 turn=2@500", ""}, next: "n1", reason: progressing, again: -1, fails: "none"},
		{name: "another's change while waves are stopped", stopped: 3, failed: "n1", members: []string{"updated turn=3@500 up=1-0 changed=1", "updated turn=3@300 Ready=False", ""}, reason: stopped, message: "1 of the last wave", again: 9 * time.Second, fails: "n1"},

		// What follows late, or changes later.
		{name: "what changes all the time has until the deadline", members: []string{"updated turn=3@900 changing=119 changed=4 lag", ""}, reason: progressing, message: "1 of the last wave must become available: n0: Ready is Unknown", again: time.Second},
		{name: "and no longer", members: []string{"updated turn=3@900 changing=120 changed=4 lag", ""}, reason: stopped, message: "n0: Ready is Unknown", again: -1, fails: "n0"},
		{name: "and is named while it is available", members: []string{"updated turn=3@900 changing=500 changed=4 up=3-0", ""}, reason: progressing, message: "1 of the last wave must become available: n0 has not been available for 10s", again: 7 * time.Second},
		{name: "it has the stable time", members: []string{"updated turn=3@500 changed=4 lag", "updated turn=3@20", ""}, reason: progressing, message: "1 of the last wave must", again: 6 * time.Second},
		{name: "and no more", members: []string{"updated turn=3@500 changed=10 lag", "updated turn=3@20", ""}, reason: stopped, message: "n0", again: -1},
		{name: "not before it has followed", members: []string{"turn=3@500 changed=4", "updated"}, reason: stopped, message: "n0 has not followed", again: -1},

		// What the template does not fit.
		{name: "it has no turn, and there is no end", members: []string{"made=2 unfit", "made=2 unfit", "updated turn=3@20"}, reason: progressing, message: "generation 3: 1 of 3 nodes are updated; there are 2 nodes that it does not fit: n0: it has no label as; n1: it has no label as", again: -1},
		{name: "the others go on", members: []string{"made=2 unfit", "updated turn=3@20", ""}, next: "n2", reason: progressing, message: "it is the turn of 1 more; there are 1 nodes", again: -1},
		{name: "it has followed before", members: []string{"made=3 unfit", "updated"}, reason: progressing, message: "1 of 2 nodes are updated; there are 1 nodes that it does not fit: n0", again: -1},
		{name: "and stops the waves still", stopped: 3, failed: "n0", members: []string{"made=3 unfit turn=3@500 Ready=False", ""}, reason: stopped, message: "n0: Ready is False: why", again: -1, fails: "n0"},
		{name: "also without its turn", stopped: 3, failed: "n0", members: []string{"made=3 unfit Ready=False", ""}, reason: stopped, message: "n0 is gone", again: -1, fails: "n0"},
		{name: "it has the turn in vain", members: []string{"made=2 unfit turn=3@121", "updated turn=3@20", ""}, next: "n0/withdrawn", reason: progressing, message: "n0: it has no label as", again: -1},
		{name: "without waves", max: "100%", members: []string{"made=2 unfit", "updated"}, reason: progressing, message: "1 of 2 nodes are updated; there are 1", again: -1},

		// What comes and goes.
		{name: "it is not repaired yet", stopped: 3, failed: "n0", members: []string{"updated turn=3@121 up=3-0", ""}, reason: stopped, message: "n0 has not been available for 10s", again: 7 * time.Second},
		{name: "it is", stopped: 3, members: []string{"updated turn=3@121 up=10-0", ""}, next: "n1", reason: progressing, again: -1},

		{name: "a session of one that was not available", stopped: 3, failed: "n0", members: []string{"updated turn=3@121 as=Unavailable lacked=SessionsUp had=1 sessions=1 SessionsUp=False kept=3-0", ""}, reason: stopped, message: "n0: SessionsUp is False", again: 7 * time.Second},
		{name: "it stays", stopped: 3, failed: "n0", members: []string{"updated turn=3@121 as=Unavailable lacked=SessionsUp had=1 sessions=1 SessionsUp=False kept=10-0", ""}, next: "n1", reason: progressing, again: -1},
		{name: "it went long after the turn", members: []string{"updated turn=3@500 as=Unavailable lacked=SessionsUp had=1 sessions=0 SessionsUp=False kept=490-5", "updated turn=3@20", ""}, next: "n2", reason: progressing, again: -1},

		// What has failed is deleted.
		{name: "that repairs nothing", stopped: 3, failed: "n9", members: []string{"", ""}, reason: stopped, message: "n9 is gone since it followed, or selected no more, which repairs nothing: change the template", again: -1},
		{name: "it is there again", stopped: 3, failed: "n0", members: []string{"updated up=3-0", ""}, reason: stopped, message: "n0 is gone", again: 7 * time.Second},
		{name: "and available", stopped: 3, failed: "n0", members: []string{"updated up=10-0", ""}, next: "n1", reason: progressing, again: -1},
		{name: "it is there again, and what is its own is not known yet", stopped: 3, failed: "n0", members: []string{"made=3 Ready=False", "updated turn=3@500", ""}, reason: stopped, message: "n0 is gone", again: -1, fails: "n0"},
		{name: "the template has changed", stopped: 2, failed: "n9", members: []string{"", ""}, next: "n0", reason: progressing, again: -1},

		// What was not available loses what it had.
		{name: "its last session", members: []string{"updated turn=3@121 as=Unavailable lacked=SessionsUp had=1 sessions=0 SessionsUp=False", ""}, reason: stopped, message: "n0: SessionsUp is False: why", again: -1},
		{name: "and has time to have it again", members: []string{"updated turn=3@20 as=Unavailable lacked=SessionsUp had=1 sessions=0 SessionsUp=False", "updated turn=3@20", ""}, reason: progressing, message: "1 of the last wave must", again: 100 * time.Second},
		{name: "its last session, as one that was broken", members: []string{"updated turn=3@121 as=Broken lacked=SessionsUp had=1 sessions=0 SessionsUp=False", ""}, reason: stopped, again: -1},
		{name: "its last session, by a turn of an older flock-controller", members: []string{"updated turn=3@121 as=Unavailable had=1 sessions=0 SessionsUp=False", ""}, reason: stopped, again: -1},
		{name: "not its last session", members: []string{"updated turn=3@121 as=Unavailable lacked=SessionsUp had=2 sessions=1 SessionsUp=False", ""}, next: "n1", reason: progressing, again: -1},
		{name: "one that it had not", members: []string{"updated turn=3@121 as=Unavailable lacked=SessionsUp sessions=0 SessionsUp=False", ""}, next: "n1", reason: progressing, again: -1},
		{name: "a condition that was True", members: []string{"updated turn=3@121 as=Unavailable lacked=SessionsUp had=1 sessions=1 Ready=False SessionsUp=False", ""}, reason: stopped, message: "n0: Ready is False: why", again: -1},
		{name: "one that was not", members: []string{"updated turn=3@121 as=Unavailable lacked=Ready,SessionsUp had=1 sessions=1 Ready=False SessionsUp=False", ""}, next: "n1", reason: progressing, again: -1},
		{name: "its way to the API server", members: []string{"updated turn=3@121 as=Unavailable lacked=SessionsUp had=1 sessions=1 lag", ""}, reason: stopped, message: "has not reported about generation 7", again: -1},
		{name: "its way, with its sessions", members: []string{"updated turn=3@121 as=Unavailable lacked=Ready,SessionsUp had=1 sessions=1 Ready=False dead", ""}, reason: stopped, again: -1},
		{name: "as is meant", max: "100%", members: []string{"updated turn=3@121 as=Unavailable lacked=SessionsUp had=1 sessions=0 SessionsUp=False", "updated"}, reason: complete, again: -1},
		{name: "what is dead is not available, whatever it has said", members: []string{"updated turn=3@121 dead", ""}, reason: stopped, message: "n0: Ready is Unknown: nothing is heard of the node", again: -1},

		// Sessions.
		{name: "the template removes all sessions", members: []string{"updated turn=3@121 had=2 sessions=0", ""}, reason: stopped, message: "n0: SessionsUp is Unknown: the node had 2 sessions up before its turn, and has none now; if that is meant, set spec.updateStrategy.rollingUpdate.maxUnavailable to 100%", again: -1},
		{name: "one of them", members: []string{"updated turn=3@121 had=2 sessions=1", ""}, next: "n1", reason: progressing, again: -1},
		{name: "all of them, as is meant", max: "100%", members: []string{"updated turn=3@121 had=2 sessions=0 up=60-2", "updated"}, reason: complete, again: -1},
		{name: "all of them, long ago", complete: 100, members: []string{"updated turn=3@121 had=2 sessions=0", ""}, next: "n1", reason: progressing, again: -1},
		{name: "those of an older turn", members: []string{"turn=2@121 had=2 sessions=0", ""}, next: "n0", reason: progressing, again: -1},
	} {
		t.Run(tc.name, func(t *testing.T) {
			nct := template(t, "all", everyNode)
			limit := intstr.Parse("2")
			if tc.max != "" {
				limit = intstr.Parse(tc.max)
			}
			nct.Spec.UpdateStrategy.RollingUpdate.MaxUnavailable = &limit
			nct.Spec.MinReadySeconds, nct.Spec.ProgressDeadlineSeconds = new(int32(10)), new(int32(120))
			if tc.stopped != 0 {
				nct.Status.Conditions = []metav1.Condition{{Type: ConditionProgressing, Reason: string(RolloutStopped), ObservedGeneration: tc.stopped}}
			}
			nct.Status.FailedNodes = strings.Fields(tc.failed)
			if tc.complete != 0 {
				last := metav1.NewTime(noon.Add(-time.Duration(tc.complete) * time.Second))
				nct.Status.LastCompleteTime = &last
			}
			var members []Member
			for i, words := range tc.members {
				members = append(members, rolloutMember(t, fmt.Sprint("n", i), words))
			}
			slices.Reverse(members) // the order must not count
			got := Next(nct, members, noon)
			var next []string
			for _, n := range got.Next {
				text := n.Config.Name
				if n.Turn.NodeState != v1alpha1.NodeAvailable {
					text += "/" + string(n.Turn.NodeState)
				}
				next = append(next, text)
				if want := (v1alpha1.TemplateTurn{Template: "all", TemplateUID: "all-1", Generation: 3, Time: metav1.NewTime(noon), NodeState: n.Turn.NodeState, Digest: digest(nct), SessionsUp: sessionsUp(n.Config), NotTrue: n.Turn.NotTrue}); !reflect.DeepEqual(n.Turn, want) || (len(want.NotTrue) > 0) != (want.NodeState != v1alpha1.NodeAvailable) {
					t.Errorf("%s gets %+v, want %+v", n.Config.Name, n.Turn, want)
				}
			}
			for _, n := range got.Withdrawn {
				next = append(next, n.Config.Name+"/withdrawn")
				if want := *n.Config.Status.TemplateTurn; !n.Turn.Withdrawn || n.Turn.Time != want.Time || n.Turn.NodeState != want.NodeState {
					t.Errorf("%s gets %+v, want its own withdrawn", n.Config.Name, n.Turn)
				}
			}
			if n := strings.Join(next, " "); n != tc.next || got.Reason != tc.reason || !strings.Contains(got.Message, tc.message) || got.Again != tc.again || tc.fails != "" && tc.fails != cmp.Or(strings.Join(got.Failed, " "), "none") {
				t.Errorf("next %q, %+v\nwant next %q %s %q again %s", n, got, tc.next, tc.reason, tc.message, tc.again)
			}
		})
	}
}

// What a template that does not say it waits for, and one that was written before the rule on
// both times.
func TestTimesOfWaves(t *testing.T) {
	brief := int32(1)
	for _, tc := range []struct {
		name     string
		deadline *int32
		member   string // the first that has its turn; another waits for its own
		next     bool
		reason   RolloutReason
		again    time.Duration
	}{
		{"available for less than minReadySeconds", nil, "updated turn=3@70 up=59-0", false, RolloutProgressing, time.Second},
		{"for so long", nil, "updated turn=3@70 up=60-0", true, RolloutProgressing, -1},
		{"not available before the deadline", nil, "updated turn=3@179 Ready=False", false, RolloutProgressing, time.Second},
		{"nor at it", nil, "updated turn=3@180 Ready=False", false, RolloutStopped, -1},
		{"cut off after the deadline, having followed late", nil, "updated turn=3@230 up=54-4 Ready=Unknown", false, RolloutStopped, -1},
		{"broken before the deadline, having been available", nil, "updated turn=3@200 up=190-21 Ready=False", false, RolloutStopped, -1},
		{"broken after it, having been available", nil, "updated turn=3@200 up=190-20 Ready=False", true, RolloutProgressing, -1},
		{"before twice minReadySeconds", &brief, "updated turn=3@119 Ready=False", false, RolloutProgressing, time.Second},
		{"and at it", &brief, "updated turn=3@120 Ready=False", false, RolloutStopped, -1},
		{"broken before it", &brief, "updated turn=3@130 up=129-11 Ready=False", false, RolloutStopped, -1},
		{"broken after it", &brief, "updated turn=3@130 up=129-10 Ready=False", true, RolloutProgressing, -1},
	} {
		t.Run(tc.name, func(t *testing.T) {
			nct := template(t, "all", everyNode)
			nct.Spec.ProgressDeadlineSeconds = tc.deadline
			got := Next(nct, []Member{rolloutMember(t, "n0", tc.member), rolloutMember(t, "n1", "")}, noon)
			if (len(got.Next) == 1) != tc.next || got.Reason != tc.reason || got.Again != tc.again {
				t.Errorf("%+v, want another wave %t, %s, again %s", got, tc.next, tc.reason, tc.again)
			}
		})
	}
}

func TestAvailability(t *testing.T) {
	var a Availability
	for i, step := range []struct {
		available    bool
		generation   int64
		since, until int // of steps
	}{
		{false, 7, -1, -1},
		{true, 7, 1, 1},
		{true, 7, 1, 2},
		{false, 7, 1, 3}, // it was until now
		{false, 7, 1, 3},
		{true, 7, 5, 5},
		{true, 8, 6, 6},  // with another spec
		{false, 9, 6, 7}, // and nothing is known with the next
	} {
		at := func(i int) time.Time {
			if i < 0 {
				return time.Time{}
			}
			return noon.Add(time.Duration(i) * time.Second)
		}
		if a.See(step.available, step.generation, at(i)); !a.Since.Equal(at(step.since)) || !a.Until.Equal(at(step.until)) {
			t.Errorf("step %d: %+v, want %d to %d", i, a, step.since, step.until)
		}
	}
}

// What changes one after the other, without being available for long in between, began once.
func TestChanges(t *testing.T) {
	nct := template(t, "all", everyNode)
	nct.Spec.MinReadySeconds, nct.Spec.ProgressDeadlineSeconds = new(int32(10)), new(int32(120))
	var c Changes
	var a Availability
	for _, step := range []struct {
		at          int
		generation  int64
		available   bool
		first, last int
	}{
		{0, 1, true, 0, 0},
		{5, 2, true, 0, 5},
		{9, 2, true, 0, 5},
		{10, 3, false, 0, 10},
		{20, 4, true, 0, 20},
		{30, 4, true, 0, 20},
		{40, 5, false, 40, 40}, // it was available for long
		{159, 6, false, 40, 159},
		{279, 7, false, 279, 279}, // it had its time
	} {
		now := noon.Add(time.Duration(step.at) * time.Second)
		c.See(step.generation, a, nct, now)
		a.See(step.available, step.generation, now)
		if first, last := int(c.First.Sub(noon).Seconds()), int(c.Last.Sub(noon).Seconds()); first != step.first || last != step.last {
			t.Errorf("at %d s: since %d, last %d, want %d and %d", step.at, first, last, step.first, step.last)
		}
	}
}

// A turn is later than the end of the roll-out before it, and its end is no earlier than its
// turns, whatever clocks have made them.
func TestTurnsAndEndsAreInOrder(t *testing.T) {
	nct := template(t, "all", everyNode)
	nct.Spec.MinReadySeconds = new(int32(0))
	future := metav1.NewTime(noon.Add(time.Hour))
	for _, last := range []metav1.Time{metav1.NewTime(noon), future} {
		nct.Status.LastCompleteTime = &last
		m := rolloutMember(t, "n0", "sessions=2")
		r := Next(nct, []Member{m}, noon)
		if len(r.Next) != 1 || !r.Next[0].Turn.Time.Equal(&metav1.Time{Time: last.Add(time.Second)}) || r.Next[0].Turn.SessionsUp != 2 {
			t.Fatalf("after %s: %+v, want a turn a second later, with 2 sessions", last, r)
		}
		m.Turn, m.Began, m.Updated = &r.Next[0].Turn, noon, true
		if r = Next(nct, []Member{m}, noon.Add(time.Second)); r.Reason != RolloutComplete || r.Completed == nil || r.Completed.Before(&m.Turn.Time) {
			t.Fatalf("after %s: %+v, want it to end no earlier than its turn", last, r)
		}
		nct.Status.LastCompleteTime = r.Completed
		if r = Next(nct, []Member{m}, noon.Add(time.Second)); r.Completed != nil {
			t.Errorf("after %s: it ends again", last)
		}
	}
}

// Each node that does not follow gets another turn before one gets a third, also when all turns
// have times of the future.
func TestTurnsTakeTheirRound(t *testing.T) {
	nct := template(t, "all", everyNode)
	future := metav1.NewTime(noon.Add(time.Hour))
	nct.Status.LastCompleteTime = &future
	members := []Member{rolloutMember(t, "n0", "made=2"), rolloutMember(t, "n1", "made=2"), rolloutMember(t, "n2", "made=2")}
	var order []string
	for i := range 30 {
		now := noon.Add(time.Duration(i) * 200 * time.Second)
		for range 2 { // one turn ends, and the next begins
			r := Next(nct, members, now)
			for _, turn := range append(r.Next, r.Withdrawn...) {
				if !turn.Turn.Withdrawn {
					order = append(order, turn.Config.Name)
				}
				j := slices.IndexFunc(members, func(m Member) bool { return m.Config == turn.Config })
				members[j].Turn, members[j].Began = &turn.Turn, now
			}
		}
	}
	if got := strings.Join(order, " "); !strings.HasPrefix(got, "n0 n1 n2 n0 n1 n2 n0 n1 n2") {
		t.Errorf("turns: %s", got)
	}
}

// A message has an end, whatever agents write into their conditions.
func TestLongReasons(t *testing.T) {
	var members []Member
	for i := range 5 {
		m := rolloutMember(t, fmt.Sprint("n", i), "updated turn=3@1000 Ready=False")
		m.Config.Status.Conditions[0].Message = strings.Repeat("ü", 16000)
		members = append(members, m)
	}
	r := Next(template(t, "all", everyNode), members, noon)
	if r.Reason != RolloutStopped || len(r.Message) > 4000 || !utf8.ValidString(r.Message) || !strings.Contains(r.Message, "ü…; n1: Ready") {
		t.Errorf("%d bytes: %s", len(r.Message), r.Message)
	}
}

// A roll-out that everybody follows ends after a known number of waves, and never has more
// nodes in flight than a wave may have.
func TestWavesOfAFleet(t *testing.T) {
	see := func(members []Member, now time.Time) {
		for i := range members {
			members[i].Seen.See(true, members[i].Config.Generation, now)
		}
	}
	for nodes, want := range map[int]int{1: 1, 2: 2, 10: 10, 100: 11, 5000: 11} {
		nct := template(t, "all", everyNode)
		nct.Spec.MinReadySeconds = new(int32(10))
		members := make([]Member, nodes)
		byName := map[string]*Member{}
		for i := range members {
			members[i] = rolloutMember(t, fmt.Sprintf("n%04d", i), "")
			byName[members[i].Config.Name] = &members[i]
		}
		now, waves := noon, 0
		for {
			r := Next(nct, members, now)
			if r.Reason == RolloutComplete {
				break
			}
			if waves++; waves > 2*want || len(r.Next) == 0 || len(r.Next) > max(1, (nodes+9)/10) {
				t.Fatalf("%d nodes, wave %d: %+v", nodes, waves, r)
			}
			for _, n := range r.Next {
				m := byName[n.Config.Name]
				m.Updated, m.Turn, m.Seen = true, &n.Turn, Availability{}
			}
			see(members, now)
			if r := Next(nct, members, now); len(r.Next) > 0 {
				t.Fatalf("%d nodes: the wave after %d begins at once", nodes, waves)
			}
			now = now.Add(10 * time.Second)
			see(members, now)
		}
		if waves != want {
			t.Errorf("%d nodes take %d waves, want %d", nodes, waves, want)
		}
	}
}

func TestInTurn(t *testing.T) {
	old := template(t, "all", everyNode)
	made := Decide(node7(), nil, []*v1alpha1.NodeConfigTemplate{old}).Object
	changed := template(t, "all", strings.Replace(everyNode, "9000", "1400", 1))
	changed.Generation = 4
	noWaves := changed.DeepCopy()
	everything := intstr.FromString("100%")
	noWaves.Spec.UpdateStrategy.RollingUpdate.MaxUnavailable = &everything
	marksOnly := old.DeepCopy()
	marksOnly.Generation = 4
	otherAS := marksOnly.DeepCopy()
	otherAS.Spec.Template.BGP.LocalASLabel, otherAS.Spec.Template.BGP.LocalAS = "", 4200000199
	higher := changed.DeepCopy()
	higher.Name, higher.UID, higher.Spec.Priority, higher.Generation = "other", "other-1", 1, 3
	again := changed.DeepCopy()
	again.UID, again.Generation = "all-2", 3
	turn := func(name string, generation int64) *v1alpha1.TemplateTurn {
		return &v1alpha1.TemplateTurn{Template: name, TemplateUID: types.UID(name + "-1"), Generation: generation}
	}
	done := changed.DeepCopy()
	done.Status.LastCompleteTime = &metav1.Time{Time: noon}
	late := turn("all", 4)
	late.Time = metav1.NewTime(noon.Add(time.Second))
	moved := node7()
	moved.PodCIDRs[0] = "10.244.8.0/24"
	for _, tc := range []struct {
		name     string
		node     Node
		current  *v1alpha1.NodeConfig
		template *v1alpha1.NodeConfigTemplate
		turn     *v1alpha1.TemplateTurn
		action   Action
		reason   Reason
	}{
		{"the first", node7(), nil, changed, nil, Create, FromTemplate},
		{"as it is", node7(), made, old, nil, Leave, FromTemplate},
		{"changed", node7(), made, changed, nil, Leave, WaitingForTurn},
		{"an earlier turn", node7(), made, changed, turn("all", 3), Leave, WaitingForTurn},
		{"another template's turn", node7(), made, changed, turn("other", 4), Leave, WaitingForTurn},
		{"its turn", node7(), made, changed, turn("all", 4), Update, FromTemplate},
		{"its turn until the deadline", node7(), made, changed, &v1alpha1.TemplateTurn{Template: "all", TemplateUID: "all-1", Generation: 4, Withdrawn: true}, Leave, WaitingForTurn},
		{"its turn of a roll-out that is complete", node7(), made, done, turn("all", 4), Leave, WaitingForTurn},
		{"its turn after that", node7(), made, done, late, Update, FromTemplate},
		{"another template", node7(), made, higher, nil, Leave, WaitingForTurn},
		{"another template's turn, and that is it", node7(), made, higher, turn("other", 3), Update, FromTemplate},
		{"nothing for the node has changed", node7(), made, marksOnly, nil, Update, FromTemplate},
		{"the node has changed", moved, made, old, nil, Update, FromTemplate},
		{"both", moved, made, changed, nil, Leave, WaitingForTurn},
		{"the node has changed, and what says nothing of it", moved, made, marksOnly, nil, Update, FromTemplate},
		{"the AS, which may be the template's doing", node7(), made, otherAS, nil, Leave, WaitingForTurn},
		{"deleted and made again", node7(), made, again, turn("all", 3), Leave, WaitingForTurn},
		{"deleted and made again, and its turn", node7(), made, again, &v1alpha1.TemplateTurn{Template: "all", TemplateUID: "all-2", Generation: 3}, Update, FromTemplate},
		{"no waves", node7(), made, noWaves, nil, Update, FromTemplate},
	} {
		t.Run(tc.name, func(t *testing.T) {
			current := tc.current.DeepCopy()
			if tc.turn != nil {
				current.Status.TemplateTurn = tc.turn
			}
			v := Decide(tc.node, current, []*v1alpha1.NodeConfigTemplate{tc.template}).InTurn(current)
			if v.Action != tc.action || v.Reason != tc.reason || v.Reason == WaitingForTurn && (v.Object != nil || !strings.Contains(v.Message, "kubectl describe nodeconfigtemplate "+tc.template.Name)) {
				t.Errorf("%+v", v)
			}
		})
	}
}
