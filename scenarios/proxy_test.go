package scenarios_test

import (
	"bytes"
	"encoding/binary"
	"io"
	"net"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"
)

// action is what a proxy does with a link on seeing a statement.
type action int

const (
	pass      action = iota
	cut              // the statement does not arrive: both sides are closed
	dropReply        // the statement takes effect, then both sides are closed instead of its reply
	hole             // from now on nothing passes, and nothing is closed: a network that swallows
	halfOpen         // as hole, but the server's side is closed: it has gone, or has given up
)

// proxy stands between clients and a server, and understands just enough of their protocol to know
// which statement a message carries and when it has taken effect.
type proxy struct {
	listener net.Listener
	server   string
	protocol protocol
	mu       sync.Mutex
	see      func(statement string) action // under mu
	links    map[*link]struct{}
	closed   bool
	mute     bool // connections are accepted, and hear nothing
}

// link is one connection through the proxy.
type link struct {
	p              *proxy
	client, server net.Conn
	prepared       map[string]string // statements by name

	mu     sync.Mutex
	silent bool // nothing passes
	doomed bool // the next complete reply is not passed on
}

// protocol is how a database's clients and servers talk, without TLS.
type protocol interface {
	// read returns the next message; the first one of a client may have another form.
	read(r io.Reader, first bool) ([]byte, error)
	// statement is what a client's message executes.
	statement(message []byte, prepared map[string]string) (string, bool)
	// effective reports that with this message from the server a statement has taken effect.
	effective(message []byte) bool
}

// startProxy returns a proxy and the DSN that leads through it.
func startProxy(t testing.TB, d database, dsn string) (*proxy, string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{listener: l, links: map[*link]struct{}{}}
	t.Cleanup(p.close)
	through := ""
	if d.driver == "mysql" {
		p.protocol = mysqlProtocol{}
		before, rest, ok := strings.Cut(dsn, "@tcp(")
		address, after, closed := strings.Cut(rest, ")")
		if !ok || !closed {
			t.Skip("the proxy needs the DSN of a server that is reached by TCP")
		}
		p.server, through = address, before+"@tcp("+l.Addr().String()+")"+after
	} else {
		p.protocol = postgresProtocol{}
		config, err := pgconn.ParseConfig(dsn)
		if err != nil {
			t.Fatal(err)
		}
		if config.TLSConfig != nil || strings.HasPrefix(config.Host, "/") || !strings.Contains(dsn, "://") {
			t.Skip("the proxy needs a URL of a server that is reached by TCP without TLS")
		}
		p.server = net.JoinHostPort(config.Host, strconv.Itoa(int(config.Port)))
		u, err := url.Parse(dsn)
		if err != nil {
			t.Fatal(err)
		}
		u.Host = l.Addr().String()
		through = u.String()
	}
	go p.accept()
	return p, through
}

// set says what is done with a link when a statement is seen; nil passes everything.
func (p *proxy) set(see func(statement string) action) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.see = see
}

// once acts on the first statement that contains all of these, in whatever case, and tells when it
// has.
func (p *proxy) once(a action, parts ...string) <-chan struct{} {
	done := make(chan struct{})
	p.set(func(statement string) action {
		statement = strings.ReplaceAll(strings.ToLower(statement), "read committed", "") // which is no COMMIT
		for _, part := range parts {
			if !strings.Contains(statement, strings.ToLower(part)) {
				return pass
			}
		}
		select {
		case <-done:
			return pass
		default:
			close(done)
			return a
		}
	})
	return done
}

func (p *proxy) close() {
	_ = p.listener.Close()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	for l := range p.links {
		l.close()
	}
}

// silence is a server that accepts connections and says nothing, to none of them.
func (p *proxy) silence() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.mute = true
	for l := range p.links {
		l.mu.Lock()
		l.silent = true
		l.mu.Unlock()
	}
}

func (p *proxy) accept() {
	for {
		client, err := p.listener.Accept()
		if err != nil {
			return
		}
		server, err := net.Dial("tcp", p.server)
		if err != nil {
			_ = client.Close()
			continue
		}
		l := &link{p: p, client: client, server: server, prepared: map[string]string{}}
		p.mu.Lock()
		l.silent = p.mute
		p.links[l] = struct{}{}
		if p.closed {
			l.close()
		}
		p.mu.Unlock()
		go l.fromClient()
		go l.fromServer()
	}
}

func (l *link) close() { _, _ = l.client.Close(), l.server.Close() }

// quiet reports that nothing passes any more. What has been read then is swallowed.
func (l *link) quiet() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.silent
}

// done ends a link, unless it is to hang.
func (l *link) done() {
	if !l.quiet() {
		l.close()
	}
}

func (l *link) fromClient() {
	defer l.done()
	message, err := l.p.protocol.read(l.client, true)
	for first := true; err == nil; first = false {
		if statement, ok := l.p.protocol.statement(message, l.prepared); ok && !first {
			l.act(plain(statement))
		}
		if !l.quiet() {
			if _, err := l.server.Write(message); err != nil {
				return
			}
		}
		message, err = l.p.protocol.read(l.client, false)
	}
}

func (l *link) act(statement string) {
	l.p.mu.Lock()
	a := pass
	if l.p.see != nil {
		a = l.p.see(statement)
	}
	l.p.mu.Unlock()
	l.mu.Lock()
	defer l.mu.Unlock()
	switch a {
	case cut:
		l.close()
	case dropReply:
		l.doomed = true
	case hole:
		l.silent = true
	case halfOpen:
		l.silent = true
		_ = l.server.Close()
	}
}

// postgresProtocol is version 3. A client's first message has no type: it starts the session, or
// asks to cancel a statement.
type postgresProtocol struct{}

func (postgresProtocol) read(r io.Reader, first bool) ([]byte, error) {
	head := make([]byte, 4, 64)
	if !first {
		head = head[:5]
	}
	if _, err := io.ReadFull(r, head); err != nil {
		return nil, err
	}
	n := int(binary.BigEndian.Uint32(head[len(head)-4:])) - 4
	message := append(head, make([]byte, max(0, n))...)
	_, err := io.ReadFull(r, message[len(head):])
	return message, err
}

func (postgresProtocol) effective(message []byte) bool { return message[0] == 'Z' } // ReadyForQuery

func (postgresProtocol) statement(message []byte, prepared map[string]string) (string, bool) {
	body := message[min(5, len(message)):]
	switch message[0] {
	case 'Q': // Query: text
		return string(bytes.TrimRight(body, "\x00")), true
	case 'P': // Parse: name, text, …
		name, rest, _ := bytes.Cut(body, []byte{0})
		text, _, _ := bytes.Cut(rest, []byte{0})
		prepared[string(name)] = string(text)
	case 'B': // Bind: portal, name, …
		_, rest, _ := bytes.Cut(body, []byte{0})
		name, _, _ := bytes.Cut(rest, []byte{0})
		return prepared[string(name)], true
	}
	return "", false
}

func (l *link) fromServer() {
	defer l.done()
	for {
		message, err := l.p.protocol.read(l.server, false)
		if err != nil {
			return
		}
		l.mu.Lock()
		silent, doomed := l.silent, l.doomed
		l.mu.Unlock()
		switch {
		case silent:
		case doomed && l.p.protocol.effective(message):
			l.close()
			return
		case doomed:
		default:
			if _, err := l.client.Write(message); err != nil {
				return
			}
		}
	}
}

// mysqlProtocol is that of clients that interpolate parameters. The first packet of a reply, which
// says that all is well or begins the rows, shows that the statement has taken effect.
type mysqlProtocol struct{}

func (mysqlProtocol) read(r io.Reader, _ bool) ([]byte, error) {
	head := make([]byte, 4, 64) // three bytes of length, one of order
	if _, err := io.ReadFull(r, head); err != nil {
		return nil, err
	}
	n := int(head[0]) | int(head[1])<<8 | int(head[2])<<16
	message := append(head, make([]byte, n)...)
	_, err := io.ReadFull(r, message[len(head):])
	return message, err
}

func (mysqlProtocol) effective([]byte) bool { return true }

func (mysqlProtocol) statement(message []byte, _ map[string]string) (string, bool) {
	if len(message) > 5 && message[3] == 0 && message[4] == 3 { // COM_QUERY
		return string(message[5:]), true
	}
	return "", false
}
