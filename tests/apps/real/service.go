// A Go HTTP service that counts, linked statically, with goroutines and a ticker; see client.py.
package main

import (
	"fmt"
	"net/http"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

func main() {
	var lock sync.Mutex
	lanes := map[string]int{}
	var ticks atomic.Int64
	go func() {
		for range time.Tick(50 * time.Millisecond) {
			ticks.Add(1)
		}
	}()
	http.HandleFunc("/", func(answer http.ResponseWriter, request *http.Request) {
		lock.Lock()
		defer lock.Unlock()
		lanes[request.URL.Path]++
		fmt.Fprintf(answer, "%d %d\n", lanes[request.URL.Path], ticks.Load())
	})
	panic(http.ListenAndServe("0.0.0.0:"+os.Args[1], nil))
}
