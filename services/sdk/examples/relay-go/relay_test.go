package main

import (
	"bytes"
	"fmt"
	"testing"
)

func said(text string) []byte {
	return []byte(`data: {"choices":[{"delta":{"content":"` + text + `"}}]}` + "\n\n")
}

func TestWholeWordIsMaskedAndTheEndOfADividedOneDropped(t *testing.T) {
	words := []string{"swordfish"}
	var delivered history
	answer, left := change(words, &delivered, said("say swordfish now"))
	if !bytes.Equal(answer.Body, said("say ********* now")) || !bytes.Equal(left, answer.Body) {
		t.Errorf("masked as %q", answer.Body)
	}
	delivered.add(said("the sword"))
	if answer, left = change(words, &delivered, said("fish is out")); !answer.DropChunk || left != nil {
		t.Error("the end of a divided word was not dropped")
	}
	if answer, left = change(words, &delivered, said(" is sharp")); answer.DropChunk || len(answer.Body) > 0 || left == nil {
		t.Error("a harmless chunk was touched")
	}
}

func TestHistoryKeepsSixtyFourChunksAndOneMebibyte(t *testing.T) {
	var delivered history
	for number := range 74 {
		delivered.add(fmt.Appendf(nil, "%d", number))
	}
	if len(delivered.chunks) != 64 || string(delivered.chunks[0]) != "10" {
		t.Errorf("%d chunks, first %s", len(delivered.chunks), delivered.chunks[0])
	}
	delivered.add(make([]byte, 1<<20))
	if len(delivered.chunks) != 1 {
		t.Errorf("%d chunks beside one of 1 MiB", len(delivered.chunks)-1)
	}
	delivered.add(make([]byte, 1<<20+1))
	if len(delivered.chunks) != 0 || delivered.size != 0 {
		t.Error("a chunk that is larger by itself leaves the history empty")
	}
}

func TestEventsAreCutWhereverReadsEnd(t *testing.T) {
	whole := "data: one\n\ndata: two\r\n\r\ndata: three\n\n"
	want := []string{"data: one\n\n", "data: two\r\n\r\n", "data: three\n\n"}
	for size := 1; size <= len(whole); size++ {
		var cutter cutter
		var found []string
		for at := 0; at < len(whole); at += size {
			for _, event := range cutter.add([]byte(whole[at:min(at+size, len(whole))])) {
				found = append(found, string(event))
			}
		}
		if rest, _ := cutter.rest(); fmt.Sprint(found) != fmt.Sprint(want) || len(rest) != 0 {
			t.Errorf("reads of %d: %q", size, found)
		}
	}
}

func TestLastEventMayLackItsBlankLineAndNothingElse(t *testing.T) {
	for text, want := range map[string]bool{"data: [DONE]\n": true, "data: {\"a\":1}": true, "data: {\"a\":": false, "data": false} {
		var cutter cutter
		cutter.add([]byte(text))
		if rest, whole := cutter.rest(); whole != want || string(rest) != text {
			t.Errorf("%q is whole: %v", text, whole)
		}
	}
}

func TestUsageIsTheProvidersElseAnEstimate(t *testing.T) {
	meter := newMeter(40, 2)
	meter.event(said("eight..."))
	if usage := meter.soFar(); !usage.Estimated || usage.Items[0].Quantity != 20 || usage.Items[1].Quantity != 4 || meter.ended {
		t.Errorf("estimated %v", usage)
	}
	meter.event([]byte("data: {\"usage\":{\"prompt_tokens\":3,\"completion_tokens\":5}}\n\n"))
	meter.event([]byte("data: [DONE]\n\n"))
	if usage := meter.soFar(); usage.Estimated || usage.Items[0].Quantity != 3 || usage.Items[1].Quantity != 5 || !meter.ended {
		t.Errorf("told %v", usage)
	}
}

func TestStreamHasEndedWhenEachChoiceHas(t *testing.T) {
	choice := func(index int, reason string) string {
		return fmt.Sprintf("data: {\"choices\":[{\"index\":%d,\"finish_reason\":%s}]}\n\n", index, reason)
	}
	for number, try := range []struct {
		events []string
		ended  bool
	}{
		{[]string{choice(0, "null")}, false},
		{[]string{choice(0, `""`)}, false},
		{[]string{choice(0, `"stop"`)}, true},
		{[]string{"data: {\"choices\" : [{\"index\" : 0, \"finish_reason\" : \"stop\"}]}\n\n"}, true},
		{[]string{choice(0, `"stop"`), choice(1, "null")}, false},
		{[]string{choice(0, `"stop"`), choice(1, "null"), choice(1, `"stop"`)}, true},
		{[]string{choice(0, `"stop"`), choice(0, "null")}, true},
		{[]string{choice(0, `"stop"`), choice(1, "null"), "data: [DONE]\n\n"}, true},
		{[]string{choice(0, `"stop"`), "data: {\"choices\":[],\"usage\":{}}\n\n"}, true},
	} {
		meter := newMeter(40, 2)
		for _, event := range try.events {
			meter.event([]byte(event))
		}
		if meter.ended != try.ended {
			t.Errorf("%d: ended is %v", number, meter.ended)
		}
	}
}

func TestOriginLeavesOutTheSchemesOwnPort(t *testing.T) {
	for _, text := range []string{"/v1", "https://a@example.com/", `https://example.com/\x`, "https://[::1/", ""} {
		if _, err := parseURL(text); reason(err) != "INVALID_URL" {
			t.Errorf("%q is taken", text)
		}
	}
	for text, want := range map[string]string{
		"https://API.example.com:443/v1": "https://api.example.com",
		"http://127.0.0.1:8080/x":        "http://127.0.0.1:8080",
		"http://[::1]:80/":               "http://[::1]",
		"https://[::1]:80/":              "https://[::1]:80",
	} {
		parsed, err := parseURL(text)
		if err != nil || origin(parsed) != want {
			t.Errorf("%s is %s: %v", text, origin(parsed), err)
		}
	}
}
