package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"sync"
	"sync/atomic"
	"time"
)

// result is a line of `echo get`: one request, or with -follow one line of its
// answer and at last the end of it.
type result struct {
	URL string `json:"url"`
	OK  bool   `json:"ok"`
	// Status is HTTP's; absent: there was no answer.
	Status int `json:"status,omitempty"`
	// Milliseconds from the request's start.
	Milliseconds float64 `json:"ms"`
	// Body is the answer, as JSON if it is that, else as a string.
	Body  json.RawMessage `json:"body,omitempty"`
	Error string          `json:"error,omitempty"`
	stamp
}

// client asks URLs in rounds and prints what it gets.
type client struct {
	count             int
	timeout, interval time.Duration
	// rate is how often a second each URL is asked, whatever the answers take; 0: one
	// request after the other.
	rate         float64
	keep, follow bool
	log          func(any)
}

// get fails if any of the requests did; each has been printed by then.
func (c *client) get(ctx context.Context, urls []string) error {
	transport := &http.Transport{DisableKeepAlives: !c.keep}
	defer transport.CloseIdleConnections()
	if c.rate > 0 {
		return c.getAtRate(ctx, transport, urls)
	}
	requests, failed := 0, 0
	for round := range c.count {
		if round > 0 && c.interval > 0 {
			select {
			case <-time.After(c.interval):
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		for _, url := range urls {
			requests++
			r := c.ask(ctx, transport, url)
			if err := ctx.Err(); err != nil {
				return err
			}
			if !r.OK {
				failed++
			}
		}
	}
	if failed > 0 {
		return fmt.Errorf("get: %d of %d requests failed", failed, requests)
	}
	return nil
}

// getAtRate begins each request when it is due: a slow answer delays no other request. What
// it could not begin in time it catches up with.
func (c *client) getAtRate(ctx context.Context, transport http.RoundTripper, urls []string) error {
	var failed atomic.Int64
	var asking sync.WaitGroup
	defer asking.Wait()
	began := time.Now()
	for round := range c.count {
		due := began.Add(time.Duration(float64(round) / c.rate * float64(time.Second)))
		select {
		case <-time.After(time.Until(due)):
		case <-ctx.Done():
			return ctx.Err()
		}
		for _, url := range urls {
			asking.Go(func() {
				if r := c.ask(ctx, transport, url); !r.OK {
					failed.Add(1)
				}
			})
		}
	}
	asking.Wait()
	if err := ctx.Err(); err != nil {
		return err
	}
	if n := failed.Load(); n > 0 {
		return fmt.Errorf("get: %d of %d requests failed", n, c.count*len(urls))
	}
	return nil
}

func (c *client) ask(interrupt context.Context, transport http.RoundTripper, url string) (r result) {
	ctx := interrupt
	if c.timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, c.timeout)
		defer cancel()
	}
	start := time.Now()
	print := func() {
		if interrupt.Err() != nil {
			return // says nothing of the URL
		}
		r.stamp, r.Milliseconds = now(), float64(time.Since(start).Microseconds())/1000
		c.log(r)
	}
	r.URL = url
	// Last, so that with -follow it shows how the stream ended.
	defer print()

	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		r.Error = err.Error()
		return r
	}
	resp, err := (&http.Client{Transport: transport}).Do(req)
	if err != nil {
		r.Error = err.Error()
		return r
	}
	defer resp.Body.Close()
	r.Status = resp.StatusCode
	r.OK = resp.StatusCode < 300
	if c.follow {
		lines := bufio.NewScanner(resp.Body)
		for lines.Scan() {
			r.Body = asJSON(lines.Bytes())
			print()
		}
		r.Body, err = nil, lines.Err()
	} else {
		var body []byte
		body, err = io.ReadAll(io.LimitReader(resp.Body, 1<<20))
		r.Body = asJSON(body)
	}
	if err != nil {
		r.OK, r.Error = false, err.Error()
	}
	return r
}

func asJSON(b []byte) json.RawMessage {
	b = bytes.TrimSpace(b)
	if json.Valid(b) || len(b) == 0 {
		return b
	}
	quoted, _ := json.Marshal(string(b)) // a string always marshals
	return quoted
}
