"""temporary"""
import contextlib, functools, queue, threading
import numpy as np
@functools.lru_cache(4)
def _perm(seed, epoch, n): return np.random.default_rng([seed, epoch]).permutation(n)
def example_indices(seed, step, batch_size, count):
    g = step*batch_size+np.arange(batch_size)
    return np.array([_perm(seed, int(e), count)[p] for e,p in zip(g//count, g%count)])
def train_batches(examples, *, seed, batch_size, first_step, process_index=0, process_count=1):
    step=first_step; local=batch_size//process_count
    while True:
        idx=example_indices(seed, step, batch_size, len(examples))[process_index*local:(process_index+1)*local]
        yield dict(examples[idx]); step+=1
def evaluation_batches(examples, *, batch_size, process_index=0, process_count=1):
    n=len(examples); local=batch_size//process_count
    for s in range(0,n,batch_size):
        i=np.arange(s,s+batch_size)[process_index*local:(process_index+1)*local]
        yield {**examples[np.minimum(i,n-1)],"mask":i<n}
@contextlib.contextmanager
def prefetch(iterator, size): yield iterator
