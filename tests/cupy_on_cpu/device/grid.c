/* Runs the threads of a launch, one after the other, on one operating-system thread.
 *
 * In a kernel with barriers each thread of a block is a fiber with a stack of its own: it runs until it reaches a
 * barrier, then the next one runs. Threads thus take turns at barriers alone, so that a missing barrier makes the
 * first thread read what the others have not written yet.
 */
#include <string.h>
#include <sys/mman.h>

#include "device.h"

#ifndef __x86_64__
#error "the switch between fibers is written for x86-64"
#endif

struct cpucupy_dim3 cpucupy_thread, cpucupy_block, cpucupy_block_size, cpucupy_grid_size;
char *cpucupy_dynamic_shared;

enum state { READY, AT_WARP_BARRIER = CPUCUPY_WARP, AT_BLOCK_BARRIER = CPUCUPY_BLOCK, DONE };

struct fiber {
    void *stack_pointer;
    enum state state;
};

enum { STACK_BYTES = 128 * 1024, GUARD_BYTES = 4096, SAVED_REGISTERS = 6 };

static char *stacks;
static struct fiber fibers[MAX_THREADS];
static char lane_slots[MAX_THREADS][CPUCUPY_LANE_BYTES];
static char dynamic_shared[MAX_SHARED_BYTES] __attribute__((aligned(16)));
static int current, thread_count, in_fibers;
static void *scheduler_stack_pointer;
static const struct cpucupy_kernel *running;
static void **running_args;

/* Save the registers that a called function must keep, change stacks, and go on where the other stack left off.
 * swapcontext does the same, with two system calls each time. */
void cpucupy_switch(void **save_stack_pointer, void *load_stack_pointer);
__asm__(".text\n"
        ".globl cpucupy_switch\n"
        ".type cpucupy_switch, @function\n"
        "cpucupy_switch:\n"
        "    pushq %rbp\n    pushq %rbx\n    pushq %r12\n    pushq %r13\n    pushq %r14\n    pushq %r15\n"
        "    movq %rsp, (%rdi)\n"
        "    movq %rsi, %rsp\n"
        "    popq %r15\n    popq %r14\n    popq %r13\n    popq %r12\n    popq %rbx\n    popq %rbp\n"
        "    ret\n"
        ".size cpucupy_switch, .-cpucupy_switch\n");

static void leave_fiber(enum state state)
{
    fibers[current].state = state;
    cpucupy_switch(&fibers[current].stack_pointer, scheduler_stack_pointer);
}

static void fiber_main(void)
{
    running->run_thread(running_args);
    leave_fiber(DONE);
}

void cpucupy_wait(enum cpucupy_barrier barrier)
{
    if (in_fibers) leave_fiber((enum state)barrier);
}

int cpucupy_lane(void) { return current % WARP; }

char *cpucupy_lane_slot(int lane) { return lane_slots[current / WARP * WARP + lane]; }

int cpucupy_lane_is_alive(int lane)
{
    int thread = current / WARP * WARP + lane;
    return thread < thread_count && fibers[thread].state != DONE;
}

static int allocate_stacks(void)
{
    if (stacks) return 0;
    char *memory = mmap(NULL, (size_t)MAX_THREADS * STACK_BYTES, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) {
        PyErr_SetFromErrno(PyExc_OSError);
        return -1;
    }
    for (int i = 0; i < MAX_THREADS; i++)  /* a stack that overflows must not run into its neighbour */
        mprotect(memory + (size_t)i * STACK_BYTES, GUARD_BYTES, PROT_NONE);
    stacks = memory;
    return 0;
}

static void start_fiber(int index)
{
    /* The stack that cpucupy_switch expects: the saved registers, then where to return to. A function starts with its
     * stack pointer 8 bytes below a multiple of 16. */
    void **top = (void **)(stacks + (size_t)(index + 1) * STACK_BYTES);
    void **stack_pointer = top - 2 - SAVED_REGISTERS;
    memset(stack_pointer, 0, SAVED_REGISTERS * sizeof(void *));
    top[-2] = (void *)fiber_main;
    fibers[index].stack_pointer = stack_pointer;
    fibers[index].state = READY;
}

static void set_thread(unsigned int index, struct extent block)
{
    cpucupy_thread.x = index % block.x;
    cpucupy_thread.y = index / block.x % block.y;
    cpucupy_thread.z = index / block.x / block.y;
}

/* Let those pass that wait at a barrier, once none can run: first the warps, then, if no warp waits, the block. */
static void open_barriers(void)
{
    enum state opened = AT_BLOCK_BARRIER;
    for (int i = 0; i < thread_count; i++)
        if (fibers[i].state == AT_WARP_BARRIER) opened = AT_WARP_BARRIER;
    for (int i = 0; i < thread_count; i++)
        if (fibers[i].state == opened) fibers[i].state = READY;
}

static void run_block_in_fibers(struct extent block)
{
    for (int i = 0; i < thread_count; i++) start_fiber(i);
    for (;;) {
        int alive = 0;
        for (current = 0; current < thread_count; current++) {
            if (fibers[current].state == READY) {
                set_thread(current, block);
                cpucupy_switch(&scheduler_stack_pointer, fibers[current].stack_pointer);
            }
            alive += fibers[current].state != DONE;
        }
        if (!alive) return;
        open_barriers();
    }
}

static void run_block(struct extent block)
{
    if (in_fibers) {
        run_block_in_fibers(block);
        return;
    }
    for (current = 0; current < thread_count; current++) {
        set_thread(current, block);
        running->run_thread(running_args);
    }
}

int run_grid(const struct cpucupy_kernel *kernel, void **args, struct extent grid, struct extent block,
             size_t dynamic_shared_bytes)
{
    if (kernel->is_grid_stride) grid = block = (struct extent){1, 1, 1};
    if (kernel->has_barriers && allocate_stacks() < 0) return -1;
    running = kernel;
    running_args = args;
    in_fibers = kernel->has_barriers;
    thread_count = block.x * block.y * block.z;
    cpucupy_block_size = (struct cpucupy_dim3){block.x, block.y, block.z};
    cpucupy_grid_size = (struct cpucupy_dim3){grid.x, grid.y, grid.z};
    cpucupy_dynamic_shared = dynamic_shared;
    size_t static_shared_bytes = kernel->shared_end - kernel->shared_begin;
    for (unsigned int z = 0; z < grid.z; z++)
        for (unsigned int y = 0; y < grid.y; y++)
            for (unsigned int x = 0; x < grid.x; x++) {
                cpucupy_block = (struct cpucupy_dim3){x, y, z};
                if (static_shared_bytes) memset(kernel->shared_begin, POISON, static_shared_bytes);
                if (dynamic_shared_bytes) memset(dynamic_shared, POISON, dynamic_shared_bytes);
                run_block(block);
            }
    return 0;
}
