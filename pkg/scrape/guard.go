package scrape

import (
	"context"
	"crypto/sha256"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"golang.org/x/time/rate"
	authenticationv1 "k8s.io/api/authentication/v1"
)

const (
	// allowedFor and refusedFor are how long an answer of the API server holds. The
	// kubelet has 5 minutes and 30 s.
	allowedFor = 2 * time.Minute
	refusedFor = 10 * time.Second
	// allowedWithout is how long after it one may still read while the API server does
	// not answer.
	allowedWithout = time.Hour
	// patience is for one question to the API server.
	patience = 5 * time.Second
	// maxToken is the longest token in bytes; those of service accounts have some 1000.
	maxToken = 16 << 10
	// maxKnown is how many answers are remembered.
	maxKnown = 256
	// warnEvery is how often it is logged that requests could not be judged: whoever can
	// connect can cause them.
	warnEvery = time.Minute
	// Somebody who sends one token after the other costs the API server so many questions
	// a second, from one address and from all. One address does not use up what others
	// have.
	questionsPerSecond, questionsAtOnce           = 1, 5
	questionsOfAllPerSecond, questionsOfAllAtOnce = 20, 40
	// maxSources is how many addresses have a limit of their own.
	maxSources = 256
)

// Reviewer is the API server.
type Reviewer interface {
	// ReviewToken returns whose token it is. ok is false if it is nobody's. An error means
	// that there is no answer.
	ReviewToken(ctx context.Context, token string) (user authenticationv1.UserInfo, ok bool, err error)
	// ReviewAccess reports whether the user may do verb, as in "get", to a path that is no
	// object of Kubernetes.
	ReviewAccess(ctx context.Context, user authenticationv1.UserInfo, verb, path string) (allowed bool, err error)
}

// Guard admits requests. Make it with NewGuard.
type Guard struct {
	api   Reviewer
	log   *slog.Logger
	limit *rate.Limiter // of all

	mu       sync.Mutex
	known    map[question]answer
	sources  map[string]*rate.Limiter // by address; the empty one has those without their own
	unjudged int                      // requests since the last line of the log
	warned   time.Time                // when that was
}

type question struct {
	token      [sha256.Size]byte
	verb, path string
}

// answer is what the API server said, and when.
type answer struct {
	status int // http.StatusOK, or why not
	reason string
	at     time.Time
}

func (a answer) lasts() time.Duration {
	if a.status == http.StatusOK {
		return allowedFor
	}
	return refusedFor
}

// NewGuard returns a guard that asks api.
func NewGuard(api Reviewer, log *slog.Logger) *Guard {
	return &Guard{api: api, log: log, limit: rate.NewLimiter(questionsOfAllPerSecond, questionsOfAllAtOnce), known: map[question]answer{}, sources: map[string]*rate.Limiter{}}
}

// Protect returns next for those who may do what they ask for. The others get 401 without
// a token that the API server knows, 403 if its owner may not, and 503 if the API server
// does not say.
func (g *Guard) Protect(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if a := g.admit(r); a.status != http.StatusOK {
			if a.status == http.StatusUnauthorized {
				w.Header().Set("WWW-Authenticate", "Bearer") // RFC 6750 section 3
			}
			http.Error(w, a.reason, a.status)
			return
		}
		next.ServeHTTP(w, r)
	})
}

func (g *Guard) admit(r *http.Request) answer {
	scheme, token, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	token = strings.TrimSpace(token)
	if !strings.EqualFold(scheme, "Bearer") || token == "" || len(token) > maxToken {
		return answer{status: http.StatusUnauthorized, reason: "send a token of a service account: Authorization: Bearer TOKEN"}
	}
	q := question{sha256.Sum256([]byte(token)), strings.ToLower(r.Method), r.URL.Path}
	before, ok := g.recall(q)
	if ok && time.Since(before.at) < before.lasts() {
		return before
	}
	from, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		from = ""
	}
	now, err := g.ask(r.Context(), from, token, q)
	if err == nil {
		g.remember(q, now)
		return now
	}
	if ok && before.status == http.StatusOK && time.Since(before.at) < allowedWithout {
		g.log.Debug("the API server does not say who may read the metrics; admitting who was admitted last", "error", err)
		return before
	}
	if r.Context().Err() == nil { // else nobody waits for the answer
		g.warn(err)
	}
	return answer{status: http.StatusServiceUnavailable, reason: "the API server does not say whether you may: try again"}
}

func (g *Guard) ask(ctx context.Context, from, token string, q question) (answer, error) {
	switch {
	case !g.source(from).Allow():
		return answer{}, fmt.Errorf("more than %d questions a second from %s", questionsPerSecond, from)
	case !g.limit.Allow():
		return answer{}, fmt.Errorf("more than %d questions a second", questionsOfAllPerSecond)
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	now := time.Now()
	user, ok, err := g.api.ReviewToken(ctx, token)
	if err != nil {
		return answer{}, err
	}
	if !ok {
		return answer{http.StatusUnauthorized, "the API server does not know this token", now}, nil
	}
	allowed, err := g.api.ReviewAccess(ctx, user, q.verb, q.path)
	if err != nil {
		return answer{}, err
	}
	if !allowed {
		return answer{http.StatusForbidden, fmt.Sprintf("%s may not %s the non-resource URL %s: bind it to the ClusterRole flock-metrics", user.Username, q.verb, q.path), now}, nil
	}
	return answer{http.StatusOK, "", now}, nil
}

// source returns the limit of an address.
func (g *Guard) source(from string) *rate.Limiter {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.sources[from] == nil && len(g.sources) >= maxSources {
		// Those that have asked nothing for a while need none.
		maps.DeleteFunc(g.sources, func(_ string, l *rate.Limiter) bool { return l.Tokens() >= questionsAtOnce })
		if len(g.sources) >= maxSources {
			from = ""
		}
	}
	if g.sources[from] == nil {
		g.sources[from] = rate.NewLimiter(questionsPerSecond, questionsAtOnce)
	}
	return g.sources[from]
}

// warn logs that a request could not be judged: the first at once, and then how many there
// were.
func (g *Guard) warn(err error) {
	g.mu.Lock()
	g.unjudged++
	n, due := g.unjudged, time.Since(g.warned) >= warnEvery
	if due {
		g.unjudged, g.warned = 0, time.Now()
	}
	g.mu.Unlock()
	if due {
		g.log.Warn("the API server does not say who may read the metrics", "requests", n, "error", err)
	}
}

func (g *Guard) recall(q question) (answer, bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	a, ok := g.known[q]
	return a, ok
}

// remember makes room, where there is none, by the refusals first: they cost least to ask
// again.
func (g *Guard) remember(q question, a answer) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if _, ok := g.known[q]; !ok && len(g.known) >= maxKnown {
		var oldest question
		var found answer
		for k, v := range g.known {
			refused, worst := v.status != http.StatusOK, found.status != http.StatusOK
			if found.at.IsZero() || refused && !worst || refused == worst && v.at.Before(found.at) {
				oldest, found = k, v
			}
		}
		delete(g.known, oldest)
	}
	g.known[q] = a
}
