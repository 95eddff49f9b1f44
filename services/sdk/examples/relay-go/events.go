package main

import (
	"bytes"
	"encoding/json"
	"regexp"

	typev1 "patchbay.dev/examples/relay-go/gen/patchbay/type/v1"
)

// cutter cuts a provider's bytes into whole events, each with its blank line.
type cutter struct {
	pending []byte
	seen    int
}

// add returns the events that data completes; they are good until the next call.
func (c *cutter) add(data []byte) [][]byte {
	c.pending = append(c.pending, data...)
	return c.cut()
}

// rest returns what is left at the end of the bytes: a last event that lacks only its blank line, or half of one.
func (c *cutter) rest() (event []byte, whole bool) {
	left := bytes.TrimSpace(c.pending)
	if len(left) == 0 {
		return nil, false
	}
	_, data, found := bytes.Cut(left, []byte("data:"))
	data = bytes.TrimSpace(data)
	return c.pending, found && (string(data) == "[DONE]" || json.Valid(data))
}

func (c *cutter) cut() [][]byte {
	var events [][]byte
	from := 0
	for {
		end := endOfEvent(c.pending, from, c.seen)
		if end < 0 {
			break
		}
		events = append(events, bytes.Clone(c.pending[from:end]))
		from, c.seen = end, end
	}
	c.pending = append(c.pending[:0], c.pending[from:]...)
	c.seen = max(0, len(c.pending)-3)
	return events
}

// endOfEvent returns where the event that begins at from ends, -1 if it does not; up to seen nothing is new.
func endOfEvent(text []byte, from, seen int) int {
	start := max(from, seen)
	best := -1
	for _, blank := range []string{"\n\n", "\r\n\r\n", "\r\r"} {
		if at := bytes.Index(text[start:], []byte(blank)); at >= 0 && (best < 0 || start+at+len(blank) < best) {
			best = start + at + len(blank)
		}
	}
	return best
}

// meter keeps what a call consumed: the provider's own word, else an estimate.
type meter struct {
	payload int
	factor  float64
	said    int
	usage   *typev1.Usage
	// ended is set when each choice that was seen had its finish reason, or the provider its last word.
	ended bool
	done  bool
	// open holds the choices that were seen since the first end, and whether they have not ended.
	open map[int]bool
}

// finished is what an event that ends a choice holds; some providers write an empty reason into each event.
var finished = regexp.MustCompile(`"finish_reason"\s*:\s*"[^"]`)

func newMeter(payload int, factor float64) *meter {
	if factor == 0 {
		factor = 1
	}
	return &meter{payload: payload, factor: factor}
}

// event looks at one event of a stream.
func (m *meter) event(event []byte) {
	if bytes.Contains(event, []byte("data: [DONE]")) {
		m.ended, m.done = true, true
	}
	if !m.done && (m.open != nil || finished.Match(event)) {
		m.choices(event)
	}
	if bytes.Contains(event, []byte(`"usage"`)) {
		for line := range bytes.Lines(event) {
			if data, ok := bytes.CutPrefix(line, []byte("data:")); ok {
				m.document(data)
			}
		}
	}
	m.said += len(contents(event))
}

// choices notes which choices an event speaks of and which of them it ends.
func (m *meter) choices(event []byte) {
	var found struct {
		Choices []struct {
			Index  int    `json:"index"`
			Reason string `json:"finish_reason"`
		} `json:"choices"`
	}
	for line := range bytes.Lines(event) {
		if data, ok := bytes.CutPrefix(line, []byte("data:")); !ok || json.Unmarshal(data, &found) != nil {
			continue
		}
		for _, choice := range found.Choices {
			if m.open == nil {
				m.open = map[int]bool{}
			}
			open, seen := m.open[choice.Index]
			m.open[choice.Index] = choice.Reason == "" && (open || !seen)
		}
	}
	m.ended = len(m.open) > 0
	for _, open := range m.open {
		m.ended = m.ended && !open
	}
}

// document takes the usage of a JSON document, if it has one.
func (m *meter) document(text []byte) {
	var found struct {
		Usage *struct {
			Prompt     int64 `json:"prompt_tokens"`
			Completion int64 `json:"completion_tokens"`
			Details    struct {
				Cached int64 `json:"cached_tokens"`
			} `json:"prompt_tokens_details"`
			More struct {
				Reasoning int64 `json:"reasoning_tokens"`
			} `json:"completion_tokens_details"`
		} `json:"usage"`
	}
	if json.Unmarshal(text, &found) == nil && found.Usage != nil {
		m.usage = &typev1.Usage{Items: []*typev1.UsageItem{
			{Unit: "input_tokens", Quantity: found.Usage.Prompt},
			{Unit: "output_tokens", Quantity: found.Usage.Completion},
			{Unit: "cache_read_tokens", Quantity: found.Usage.Details.Cached},
			{Unit: "reasoning_tokens", Quantity: found.Usage.More.Reasoning},
		}}
	}
}

// soFar returns what was consumed until now.
func (m *meter) soFar() *typev1.Usage {
	if m.usage != nil {
		return m.usage
	}
	tokens := func(size int) int64 { return int64(float64(size) / 4 * m.factor) }
	return &typev1.Usage{Estimated: true, Items: []*typev1.UsageItem{
		{Unit: "input_tokens", Quantity: tokens(m.payload)},
		{Unit: "output_tokens", Quantity: tokens(m.said)},
	}}
}
