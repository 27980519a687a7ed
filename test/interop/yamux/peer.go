// Peer of test/integration/tunnel-yamux.test.ts: hashicorp/yamux on one TCP connection.
//
//	peer serve [stall]   listens on loopback, prints the port, is the yamux server of one connection
//	peer dial PORT       connects to loopback and is the yamux client
//
// The server does what the first byte of a stream asks for: 'e' sends everything back, 'h' answers with the
// SHA-256 of everything, 'r' reports how reading failed. With stall it accepts no stream, so that the second
// one is reset. Results are printed, one line each.
package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"net"
	"os"
	"time"

	"github.com/hashicorp/yamux"
)

const large = 10 << 20

func main() {
	config := yamux.DefaultConfig()
	config.LogOutput = os.Stderr
	switch {
	case len(os.Args) == 3 && os.Args[1] == "dial":
		dial(os.Args[2], config)
	case len(os.Args) >= 2 && os.Args[1] == "serve":
		serve(len(os.Args) == 3 && os.Args[2] == "stall", config)
	default:
		fatal(fmt.Errorf("usage: peer serve [stall] | peer dial PORT"))
	}
}

func serve(stall bool, config *yamux.Config) {
	if stall {
		config.AcceptBacklog = 1
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	fatal(err)
	fmt.Println("port", listener.Addr().(*net.TCPAddr).Port)
	conn, err := listener.Accept()
	fatal(err)
	session, err := yamux.Server(conn, config)
	fatal(err)
	go func() {
		took, err := session.Ping()
		fatal(err)
		fmt.Println("ping", took > 0)
	}()
	if stall {
		<-session.CloseChan()
		return
	}
	for {
		stream, err := session.AcceptStream()
		if err != nil {
			fmt.Println("session ended")
			return
		}
		go answer(stream)
	}
}

func answer(stream *yamux.Stream) {
	command := make([]byte, 1)
	_, err := io.ReadFull(stream, command)
	fatal(err)
	switch command[0] {
	case 'e':
		_, err = io.Copy(stream, stream)
		fatal(err)
	case 'h':
		hash := sha256.New()
		_, err = io.Copy(hash, stream)
		fatal(err)
		_, err = stream.Write([]byte(hex.EncodeToString(hash.Sum(nil))))
		fatal(err)
	case 'r':
		_, err = io.Copy(io.Discard, stream)
		fmt.Println("read failed:", err)
	}
	fatal(stream.Close())
}

func dial(port string, config *yamux.Config) {
	conn, err := net.DialTimeout("tcp", "127.0.0.1:"+port, 5*time.Second)
	fatal(err)
	session, err := yamux.Client(conn, config)
	fatal(err)
	took, err := session.Ping()
	fatal(err)
	fmt.Println("ping", took > 0)

	// Ten megabytes each way at once, compared byte by byte.
	stream, err := session.OpenStream()
	fatal(err)
	sent := make([]byte, large)
	for i := range sent {
		sent[i] = byte(i*7 + i>>9)
	}
	go func() {
		_, err := stream.Write(sent)
		fatal(err)
	}()
	received := make([]byte, large)
	_, err = io.ReadFull(stream, received)
	fatal(err)
	fmt.Println("echo", bytes.Equal(sent, received))
	fatal(stream.Close())

	// We end first; the far end ends after it.
	stream, err = session.OpenStream()
	fatal(err)
	_, err = stream.Write([]byte("last words"))
	fatal(err)
	fatal(stream.Close())

	// The far end resets.
	stream, err = session.OpenStream()
	fatal(err)
	_, err = stream.Write([]byte("reset me"))
	fatal(err)
	_, err = io.ReadAll(stream)
	fmt.Println("read failed:", err)

	// The far end ends first; we read to the end and then say something.
	stream, err = session.OpenStream()
	fatal(err)
	_, err = stream.Write([]byte("end first"))
	fatal(err)
	answer, err := io.ReadAll(stream)
	fatal(err)
	fmt.Println("answer", string(answer))
	_, err = stream.Write([]byte(", then I"))
	fatal(err)
	fatal(stream.Close())

	fatal(session.GoAway())
	// A stream more would be refused here; the session goes when the far end has closed it.
	select {
	case <-session.CloseChan():
	case <-time.After(10 * time.Second):
		fatal(fmt.Errorf("the session was not closed after go-away"))
	}
	fmt.Println("session ended")
}

func fatal(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "peer:", err)
		os.Exit(1)
	}
}
