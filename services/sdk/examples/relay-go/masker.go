package main

import (
	"bytes"
	"errors"
	"io"
	"log/slog"
	"regexp"
	"slices"

	"google.golang.org/grpc/codes"

	pluginv1 "patchbay.dev/examples/relay-go/gen/patchbay/plugin/v1"
	typev1 "patchbay.dev/examples/relay-go/gen/patchbay/type/v1"
)

const (
	historyChunks = 64
	historyBytes  = 1 << 20
	lookedBack    = 8
)

// What a chunk of OpenAI's dialect says.
var content = regexp.MustCompile(`"content":\s*"((?:[^"\\]|\\.)*)"`)

// history is the chunks of one answer that were delivered, oldest first.
type history struct {
	chunks [][]byte
	size   int
}

func (h *history) add(chunk []byte) {
	if len(chunk) == 0 {
		return
	}
	h.chunks = append(h.chunks, chunk)
	h.size += len(chunk)
	for len(h.chunks) > historyChunks || h.size > historyBytes {
		h.size -= len(h.chunks[0])
		h.chunks[0] = nil
		h.chunks = h.chunks[1:]
	}
}

// masker is StreamChunkInterceptorService: it masks words that are whole in a chunk, and drops a chunk that
// ends a word which the chunks before began. The gateway's log is told once a stream.
type masker struct {
	pluginv1.UnimplementedStreamChunkInterceptorServiceServer
	host *host
	log  *slog.Logger
}

func (m *masker) InterceptStreamChunk(stream pluginv1.StreamChunkInterceptorService_InterceptStreamChunkServer) error {
	words := settingsOf(stream.Context()).Words
	var delivered history
	var answered []byte // what was answered last, the chunk itself where nothing was changed
	begun, told := false, false
	for {
		request, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if !begun {
			if request.ChunkIndex != -1 {
				return failure(codes.InvalidArgument, "STREAM_NOT_BEGUN", "the first message has index -1")
			}
			begun = true
			headers := map[string]*typev1.StringList{"x-masked-by": {Values: []string{pluginID}}}
			if err := stream.Send(&pluginv1.StreamChunkInterceptResponse{ChunkIndex: -1, Headers: headers}); err != nil {
				return err
			}
			continue
		}
		switch request.Previous {
		case pluginv1.ChunkFate_CHUNK_FATE_UNCHANGED:
			delivered.add(answered)
		case pluginv1.ChunkFate_CHUNK_FATE_REPLACED:
			delivered.add(request.PreviousBody)
		}
		answer, left := change(words, &delivered, request.Body)
		answer.ChunkIndex = request.ChunkIndex
		for i, chunk := range request.More {
			delivered.add(left)
			var next *pluginv1.StreamChunkInterceptResponse
			next, left = change(words, &delivered, chunk)
			next.ChunkIndex = request.ChunkIndex + int32(i) + 1
			answer.More = append(answer.More, next)
		}
		answered = left
		if !told && touched(answer) {
			// Before the answer: the scope ends with the last one.
			told = true
			if err := m.host.say(stream.Context(), "words were masked", map[string]any{"chunk": request.ChunkIndex}); err != nil {
				m.log.Warn("the host's log cannot be reached", "error", err.Error())
			}
		}
		if err := stream.Send(answer); err != nil {
			return err
		}
	}
}

// touched says whether an answer changes anything.
func touched(answer *pluginv1.StreamChunkInterceptResponse) bool {
	return len(answer.Body) > 0 || answer.DropChunk || slices.ContainsFunc(answer.More, touched)
}

// change returns the answer to one chunk, and what is left of the chunk: nil when it is dropped.
func change(words []string, delivered *history, chunk []byte) (*pluginv1.StreamChunkInterceptResponse, []byte) {
	masked := chunk
	for _, word := range words {
		masked = bytes.ReplaceAll(masked, []byte(word), bytes.Repeat([]byte("*"), len(word)))
	}
	if said := contents(masked); len(said) > 0 {
		before := contents(delivered.chunks[max(0, len(delivered.chunks)-lookedBack):]...)
		for _, word := range words {
			if spans(before, said, word) {
				return &pluginv1.StreamChunkInterceptResponse{DropChunk: true}, nil
			}
		}
	}
	if bytes.Equal(masked, chunk) {
		return &pluginv1.StreamChunkInterceptResponse{}, chunk
	}
	return &pluginv1.StreamChunkInterceptResponse{Body: masked}, masked
}

// contents returns what chunks say, joined.
func contents(chunks ...[]byte) []byte {
	var said []byte
	for _, chunk := range chunks {
		for _, match := range content.FindAllSubmatch(chunk, -1) {
			said = append(said, match[1]...)
		}
	}
	return said
}

// spans says whether word begins at the end of before and ends at the beginning of said.
func spans(before, said []byte, word string) bool {
	for cut := 1; cut < len(word); cut++ {
		if bytes.HasSuffix(before, []byte(word[:cut])) && bytes.HasPrefix(said, []byte(word[cut:])) {
			return true
		}
	}
	return false
}
