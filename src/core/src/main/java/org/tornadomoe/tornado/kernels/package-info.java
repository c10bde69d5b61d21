/**
 * Device code: static methods over {@code KernelContext} and TornadoVM's native arrays, and texts in other languages,
 * which {@link KernelSource} reads. A kernel's Javadoc states its grid, its work-group, the layout of every array and
 * what it costs.
 *
 * <p>Rules that hold for every kernel here: sizes that change from call to call are read from the {@code header} array,
 * because scalar parameters are constants of the compiled kernel; every work-item of a group reaches every barrier, so
 * work that falls outside the problem is guarded, never returned from; a reduction adds in a fixed order, so the same
 * input gives the same bits.
 *
 * <p>Shape letters: M tokens, E experts, H hidden size, I intermediate size, K experts a token (top-k), P = M·K pairs
 * of a token and one of its experts; pair p belongs to token p / K.
 */
@NullMarked
package org.tornadomoe.tornado.kernels;

import org.jspecify.annotations.NullMarked;
