/* What a compiled kernel (C++) and the device that runs it (C) agree on. */
#pragma once

#ifdef __cplusplus
extern "C" {
#endif

struct cpucupy_dim3 {
    unsigned int x, y, z;
};

/* The thread that runs now. One operating-system thread runs them all, one after the other. */
extern struct cpucupy_dim3 cpucupy_thread, cpucupy_block, cpucupy_block_size, cpucupy_grid_size;
extern char *cpucupy_dynamic_shared;

/* Where a thread waits: until its whole warp, or its whole block, has come as far. */
enum cpucupy_barrier { CPUCUPY_WARP = 1, CPUCUPY_BLOCK = 2 };
void cpucupy_wait(enum cpucupy_barrier barrier);

/* A value that each lane of a warp shows the others. */
enum { CPUCUPY_LANE_BYTES = 16 };
char *cpucupy_lane_slot(int lane);
int cpucupy_lane(void);
int cpucupy_lane_is_alive(int lane);

/* What a launch may have of shared memory unless the kernel's attribute allows it more. */
enum { CPUCUPY_DEFAULT_SHARED_BYTES = 49152 };

struct cpucupy_kernel {
    void (*run_thread)(void **args);
    int has_barriers;     /* threads must take turns: run them as fibers */
    int is_grid_stride;   /* one thread alone does the work of any grid */
    unsigned int max_dynamic_shared_bytes;
    char *shared_begin;   /* the kernel's own __shared__ variables */
    char *shared_end;
};

#ifdef __cplusplus
}
#endif
