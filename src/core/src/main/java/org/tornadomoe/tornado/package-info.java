/**
 * The TRITON slot: the layer as TornadoVM task graphs. {@link org.tornadomoe.tornado.device.TornadoHome} finds out what
 * answers to TornadoVM's API here, {@link org.tornadomoe.tornado.device.Device} what a device can do,
 * {@link org.tornadomoe.tornado.graph.LayerArrays} holds a layer's arrays,
 * {@link org.tornadomoe.tornado.graph.LayerProgram} its kernels in order, {@link org.tornadomoe.tornado.TornadoExperts}
 * makes a kernel of them.
 */
@NullMarked
package org.tornadomoe.tornado;

import org.jspecify.annotations.NullMarked;
